"""One client of the control socket: lines in, lines out, and the limits that keep it in its place.

Owns an accepted socket, what was read and not yet looked at, what is to be sent and not yet taken, and
the one timer that says how long the client may take over whatever it does now. Knows nothing of
requests or JSON beyond the error lines of its own. Called by `server` only.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from supervisor import protocol
from supervisor.control.peer import Peer
from supervisor.control.rota import Rota
from supervisor.loop import Loop, Timer

#: One read; also what a client can make us hold of requests that are not yet looked at.
READ_BYTES = 64 * 1024
#: Open requests of one connection. Further lines are left unread until one of them is answered.
MAX_OPEN_REQUESTS = 64
#: With more unsent, no more requests are read.
MAX_UNSENT_BYTES = 1024 * 1024
#: With more of its streams unsent, a reader has lagged.
MAX_STREAM_BYTES = 256 * 1024
#: With more of them unsent, whoever can wait waits before adding to a stream.
STREAM_ROOM_BYTES = 64 * 1024
#: A reader that takes nothing for so long is closed.
STALL_S = 30.0
#: How long a last line may take to be read before the connection is closed under it.
CLOSE_S = 5.0


class Connection:
    """Calls `on_line` for each line that came, and `on_closed` once, when the socket is closed.

    `tokens` are the open requests; its owner keeps them, and calls `resume` after it took one away.
    """

    __slots__ = (
        *("_closing", "_deaf", "_finished", "_has_turn", "_heard", "_interest", "_lines", "_loop", "_on_closed"),
        *("_on_line", "_on_room", "_rota", "_sent_of_first", "_sock", "_streamed_bytes", "_timer", "_timer_is_for"),
        *("_unsent", "asked_too_much", "closed", "fd", "peer", "tokens", "unsent_bytes"),
    )

    def __init__(
        self,
        sock: socket.socket,
        peer: Peer,
        loop: Loop,
        rota: Rota,
        on_line: Callable[[Connection, bytes], None],
        on_closed: Callable[[Connection], None],
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._rota = rota
        self._on_line = on_line
        self._on_closed = on_closed
        self._lines = protocol.LineSplitter(protocol.MAX_REQUEST_BYTES)
        self._unsent: deque[tuple[bytes, bool]] = deque()  # line, whether it belongs to a stream
        self._streamed_bytes = 0  # the part of the unsent bytes that is streams
        self._on_room: dict[int, Callable[[], None]] = {}  # by token: who waits until its streams are sent
        self._sent_of_first = 0  # bytes of the first unsent line that are gone already
        self._heard = False  # a first line came
        self._has_turn = False  # a line of it is looked at when its turn comes; until then nothing more is read
        self._deaf = False  # it reads no more
        self._finished = False  # it sends no more, but may still read
        self._closing = False  # it is closed when all is sent
        self._interest = (False, False)
        self._timer: Timer | None = None
        self._timer_is_for = ""
        self.unsent_bytes = 0
        self.asked_too_much = False  # an answer was too large for its owner to keep; it sets and clears this
        self.closed = False
        self.fd = sock.fileno()
        self.tokens: set[int] = set()
        self.peer = peer
        self._settle()

    # -- out -------------------------------------------------------------------------------------

    def send(self, line: bytes) -> None:
        """Send a line, now or as soon as the client reads. However long: it was asked for."""
        if not self._closing:
            self._enqueue(line, streamed=False)

    def stream(self, line: bytes) -> None:
        """Send a line of a stream; a reader that is too far behind is told `lagged`, and closed."""
        if self._streamed_bytes > MAX_STREAM_BYTES:
            self._give_up()
        elif not self._closing:
            self._enqueue(line, streamed=True)

    def has_room(self, token: int, on_room: Callable[[], None]) -> bool:
        """Whether more of a stream may follow now; if not, `on_room` is called once, when all of it is sent."""
        if self._streamed_bytes <= STREAM_ROOM_BYTES and not (self.closed or self._closing or self._deaf):
            return True
        self._on_room[token] = on_room
        return False

    def resume(self) -> None:
        """An open request was answered: look at the lines that had to wait for that."""
        if len(self._lines) and not self._interest[0]:
            self._take_turn()
        self._settle()

    def dismiss(self, last_line: bytes) -> None:
        """Say one last thing, then close."""
        if not self._closing:
            self._closing = True
            self._disarm()
            self._enqueue(last_line, streamed=False)

    def drop(self) -> None:
        """Close the connection now."""
        if not self.closed:
            self.closed = True
            self._loop.unwatch(self.fd)
            self._disarm()
            self._unsent.clear()
            self._on_room.clear()
            self._on_closed(self)
            self._sock.close()

    def _enqueue(self, line: bytes, *, streamed: bool) -> None:
        if self.closed:
            return
        self._unsent.append((line, streamed))
        self._count(line, streamed, 1)
        if len(self._unsent) == 1:
            self._flush()
        else:
            self._settle()

    def _count(self, line: bytes, streamed: bool, sign: int) -> None:
        self.unsent_bytes += sign * len(line)
        if streamed:
            self._streamed_bytes += sign * len(line)

    def _flush(self) -> None:
        try:
            while self._unsent:
                line, streamed = self._unsent[0]
                self._sent_of_first += self._sock.send(memoryview(line)[self._sent_of_first :])
                self._disarm()  # it reads: its time starts anew
                if self._sent_of_first == len(line):
                    self._unsent.popleft()
                    self._count(line, streamed, -1)
                    self._sent_of_first = 0
        except BlockingIOError:
            pass
        except OSError:
            self._hear_out()
            return
        self._tell_of_room()
        if not self._unsent:
            self.resume()
        else:
            self._settle()

    def _tell_of_room(self) -> None:
        if self._on_room and not (self._streamed_bytes or self._closing):
            for on_room in self._on_room.values():
                self._loop.call_at(0.0, on_room)
            self._on_room.clear()

    def _hear_out(self) -> None:
        """It reads no more: forget all answers. But what was read of it still counts."""
        while self._unsent:
            self._count(*self._unsent.pop(), -1)
        self._sent_of_first = 0
        if not self._finished:
            self._finished = True
            self._lines.feed_end()
        self._deaf = True
        self.resume()

    def _give_up(self) -> None:
        """It does not read what it asked for: forget all that waits, but finish a line that is half sent."""
        while len(self._unsent) > (1 if self._sent_of_first else 0):
            self._count(*self._unsent.pop(), -1)
        self.dismiss(protocol.encode_notification("lagged", {}))

    # -- in --------------------------------------------------------------------------------------

    def hung_up(self) -> None:
        """The other end is closed both ways. What it sent before that still counts, unless it had to wait."""
        if self._interest[0]:
            self._read()
        if not (self._interest[0] or self._has_turn):
            self.drop()

    def _read(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.drop()
            return
        if data:
            self._lines.feed(data)
        else:
            self._lines.feed_end()
            self._finished = True
        self._take_turn()
        self._settle()

    def _take_turn(self) -> None:
        if not self._has_turn:
            self._has_turn = True
            self._rota.join(self._look_at_line)

    def _look_at_line(self) -> None:
        self._has_turn = False
        if not (self.closed or self._closing or self._is_clogged()):
            try:
                line = self._lines.next_line()
            except protocol.LineTooLongError:
                message = f"the line is longer than {protocol.MAX_REQUEST_BYTES} bytes"
                self.dismiss(_error_line("too_long", message, "send less at once; connect again"))
                return
            if line is not None:
                self._heard = True
                self._disarm()
                self._take_turn()  # for the next one
                self._on_line(self, line)
        self._settle()

    def _is_clogged(self) -> bool:
        """Whether it has asked for enough for now."""
        return len(self.tokens) >= MAX_OPEN_REQUESTS or self.unsent_bytes > MAX_UNSENT_BYTES

    # -- what to wait for ------------------------------------------------------------------------

    def _settle(self) -> None:
        """Bring watches and timer in line with what is expected of the client; close it if that is nothing."""
        if self.closed:
            return
        done = self._finished and not len(self._lines) and (self._deaf or not self.tokens)
        if not self._unsent and (self._closing or done):
            self.drop()
            return
        reads = not (self._finished or self._closing or self._has_turn or self._is_clogged())
        interest = (reads, bool(self._unsent))
        if interest != self._interest:
            self._interest = interest
            self._loop.watch(self.fd, self._read if reads else None, self._flush if self._unsent else None)
        if self._unsent:
            self._arm("close" if self._closing else "stall", CLOSE_S if self._closing else STALL_S)
        elif reads and (len(self._lines) or not self._heard):
            self._arm("line", protocol.LINE_TIMEOUT_S)
        else:
            self._disarm()

    def _arm(self, purpose: str, after_s: float) -> None:
        """Set the one timer, unless it runs for this purpose already."""
        if self._timer_is_for != purpose:
            self._disarm()
            self._timer = self._loop.call_at(time.monotonic() + after_s, partial(self._time_is_up, purpose))
            self._timer_is_for = purpose

    def _disarm(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
            self._timer_is_for = ""

    def _time_is_up(self, purpose: str) -> None:
        self._disarm()
        if purpose == "line":
            message = f"no whole line came within {protocol.LINE_TIMEOUT_S:g} s"
            self.dismiss(_error_line("too_slow", message, "end each request with a newline; connect again"))
        elif purpose == "stall" and self.tokens:
            self._give_up()
        else:
            self.drop()


def _error_line(kind: str, message: str, hint: str) -> bytes:
    return protocol.encode_error(None, protocol.INVALID_REQUEST, kind, message, hint)
