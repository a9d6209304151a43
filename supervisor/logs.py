"""Reading and following the output of attempts, for clients of the socket.

Owns the watches on log files (inotify, so nothing is polled). Shims write these files; this only
reads, and no faster than its followers. Knows no jobs and no sockets: what it reads goes to callbacks.
Called by the daemon.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import inotify_simple

from supervisor.loop import Loop

#: Bytes of a log's end that one answer holds at most.
MAX_TAIL_BYTES = 1 << 20
#: Bytes sent to a follower in one turn of the loop. As JSON they may be six times as many.
CHUNK_BYTES = 16 * 1024
#: Followers that are left after so long wait for the next turn.
SENDING_S = 0.005


def tail(path: Path, lines: int) -> tuple[str, int]:
    """The last lines of a log as text, and the offset in bytes behind them. A log that is not there is empty."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return "", 0
    with open(descriptor, "rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - MAX_TAIL_BYTES))
        body = log.read(MAX_TAIL_BYTES)
    kept = body.splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(kept).decode("utf-8", "replace"), max(0, size - MAX_TAIL_BYTES) + len(body)


@dataclass(slots=True)
class _Follower:
    fd: int  # of the log, which may be removed or replaced meanwhile
    watch: int
    offset: int
    send: Callable[[str], None]
    has_room: Callable[[], bool]
    on_end: Callable[[], None] | None = None  # the log grows no more
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))


class LogFollowers:
    """Sends what is appended to logs, by token of whoever follows."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._inotify: inotify_simple.INotify | None = None  # made when someone follows
        self._followers: dict[int, _Follower] = {}
        self._watches: dict[int, set[int]] = {}  # watch descriptor -> tokens
        self._behind: OrderedDict[int, None] = OrderedDict()  # tokens of those for whom there may be something to send
        self._is_called = False

    def follow(
        self, token: int, path: Path, offset: int, send: Callable[[str], None], has_room: Callable[[], bool]
    ) -> None:
        """Call `send` with all that stands behind `offset`, now and as it comes. OSError.

        `has_room` is asked before; once it has said no, nothing is sent until `go_on` is called.
        """
        if self._inotify is None:
            self._inotify = inotify_simple.INotify(nonblocking=True)
            self._loop.watch(self._inotify.fileno(), read=self._on_changes)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        # The shim may not have made it yet; it appends, so an empty file does no harm.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        try:
            watch = self._inotify.add_watch(f"/proc/self/fd/{fd}", inotify_simple.flags.MODIFY)
        except OSError:
            os.close(fd)
            raise
        self._watches.setdefault(watch, set()).add(token)
        self._followers[token] = _Follower(fd, watch, offset, send, has_room)
        self.go_on(token)

    def finish(self, token: int, on_end: Callable[[], None]) -> None:
        """The log is whole: send what is left of it, forget the follower, then call `on_end`."""
        if follower := self._followers.get(token):
            follower.on_end = on_end
            self.go_on(token)

    def drop(self, token: int) -> None:
        """Forget a follower who is gone. Unknown tokens are no error."""
        follower = self._followers.pop(token, None)
        if follower is None:
            return
        os.close(follower.fd)
        tokens = self._watches.get(follower.watch, set())
        tokens.discard(token)
        if not tokens and self._watches.pop(follower.watch, None) is not None:
            assert self._inotify is not None
            with contextlib.suppress(OSError):  # the kernel may have dropped it already
                self._inotify.rm_watch(follower.watch)

    def go_on(self, token: int) -> None:
        """Send what there is, from the next turn on; there may be something, or room for it."""
        self._behind[token] = None
        self._call()

    def _on_changes(self) -> None:
        assert self._inotify is not None
        for watch in {event.wd for event in self._inotify.read(timeout=0)}:
            for token in self._watches.get(watch, ()):
                self.go_on(token)

    def _call(self) -> None:
        if not self._is_called:
            self._is_called = True
            self._loop.call_at(0.0, self._serve)

    def _serve(self) -> None:
        """One chunk to each who is behind, as far as there is time; at least to one."""
        self._is_called = False
        until = time.monotonic() + SENDING_S
        for _ in range(len(self._behind)):
            token, _ = self._behind.popitem(last=False)
            if token in self._followers and self._send_chunk(token, self._followers[token]):
                self._behind[token] = None
            if time.monotonic() >= until:
                break
        if self._behind:
            self._call()

    def _send_chunk(self, token: int, follower: _Follower) -> bool:
        """Whether there may be more to send at once."""
        if not follower.has_room():
            return False
        chunk = b""
        with contextlib.suppress(OSError):  # a disk that fails: what can be read is sent
            chunk = os.pread(follower.fd, CHUNK_BYTES, follower.offset)
        follower.offset += len(chunk)
        is_end = not chunk and follower.on_end is not None
        if text := follower.decoder.decode(chunk, is_end):
            follower.send(text)
        if is_end and follower.on_end:
            self.drop(token)
            follower.on_end()
        return bool(chunk)
