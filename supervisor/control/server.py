"""The control socket: bytes in, requests out; replies in, bytes out.

Owns the Unix socket, its clients, and the requests that are still open. Knows no command: what a method
means, who may call it and what comes back is the daemon's business; it is told only who is a stranger.
Called by `supervisor.daemon`; runs on `supervisor.loop`; leaves each client's bytes and limits to `connection`.

`on_request` and `on_gone` are called on a turn of the loop, never from within `reply`, `refuse`,
`notify` or `end`; so the daemon need not expect a callback while it hands out answers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from supervisor import protocol
from supervisor.control.connection import READ_BYTES, Connection
from supervisor.control.peer import Peer, peer_of
from supervisor.control.rota import Rota
from supervisor.loop import Loop

#: Clients may take one in so many of the descriptors that this process may have: starts need the others.
DESCRIPTORS_PER_CLIENT = 4
#: Places that strangers may take, all of them together: they must not keep out those who may do something.
MAX_STRANGERS = 16
#: With more answers unread, a client's further questions are refused.
MAX_UNREAD_BYTES = 8 * 1024 * 1024
#: With more answers unread by all clients together, only those who have read theirs get some, and only small ones.
MAX_UNREAD_BY_ALL_BYTES, SMALL_BYTES = 64 * 1024 * 1024, 64 * 1024
#: Connections taken in one turn of the loop.
MAX_ACCEPTS_PER_TURN = 64
#: Connections that the kernel keeps until they are taken; the next one has to wait, or to try again.
MAX_WAITING = 1024
#: How long accepting rests when descriptors or memory have run out.
ACCEPT_PAUSE_S = 0.5
#: Bytes of an AF_UNIX path (108 with the closing zero).
MAX_PATH_BYTES = 107

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class ControlError(Exception):
    """The socket could not be set up. The text says what, where, and what to do."""


class Request(NamedTuple):
    """Someone wants something. `token` is where the answer goes; `peer` is the kernel's word.

    `connection` tells those that are open apart; it may be given again when its client has gone.
    """

    token: int
    method: str
    params: dict[str, Any]
    request_id: str | None
    peer: Peer
    connection: int


class _Open(NamedTuple):
    """A request that may still be answered."""

    connection: Connection
    call: protocol.Call


class Control:
    """The listening socket and its clients. Bound and listening once made; raises ControlError.

    `is_stranger`: whether a client may do nothing, and so has to leave the places to others.
    A request's token stays open until `reply` or `refuse`; with `reply(…, more=True)` until `end`, and
    `notify` may be called in between. Unknown tokens (their client has gone) are ignored everywhere.
    """

    def __init__(
        self,
        path: str,
        loop: Loop,
        on_request: Callable[[Request], None],
        on_gone: Callable[[int], None],
        mode: int = 0o660,
        is_stranger: Callable[[Peer], bool] = lambda _peer: False,
    ) -> None:
        self._path = path
        self._loop = loop
        self._on_request = on_request
        self._on_gone = on_gone
        self._is_stranger = is_stranger
        self._max_connections = _max_connections()
        self._rota = Rota(loop)
        self._connections: dict[int, Connection] = {}  # by descriptor
        self._strangers: set[int] = set()  # their descriptors
        self._open: dict[int, _Open] = {}  # by token
        self._last_token = 0
        self._listener = _listen(path, mode)
        self._inode = os.lstat(path).st_ino
        # Tells which clients have closed both ways; the loop does not, of those that are not read from.
        self._hangups = select.epoll()
        loop.watch(self._listener.fileno(), read=self._accept)
        loop.watch(self._hangups.fileno(), read=self._hung_up)

    # -- answers ---------------------------------------------------------------------------------

    def reply(self, token: int, result: dict[str, Any] | bytes, *, more: bool = False) -> None:
        """Answer with a result: a JSON object, or its encoding. `more`: a stream follows, until `end`."""
        if (request := self._open.get(token)) is None:
            return
        line = protocol.encode_result(request.call.call_id, result)
        if len(line) > protocol.MAX_REPLY_BYTES:
            message = f"the answer has {len(line)} bytes, more than {protocol.MAX_REPLY_BYTES}"
            self.refuse(token, protocol.REFUSED, "too_large", message, "ask for less: name a job, or set a limit")
            return
        if len(line) > SMALL_BYTES and self._is_full():
            request.connection.asked_too_much = True
            self._refuse_busy(token, f"clients have much to read yet, and this answer has {len(line)} bytes")
            return
        self._answer(token, request, line, more=more)

    def is_worthwhile(self, token: int) -> bool:
        """Whether to look up the answer to a question: not if its client has gone, nor if it has much to read yet.

        Then the question is refused, and its client may ask again when it has read.
        """
        if (request := self._open.get(token)) is None:
            return False
        connection = request.connection
        may_be_too_much = connection.asked_too_much or connection.unsent_bytes > SMALL_BYTES
        connection.asked_too_much = may_be_too_much and self._is_full()
        if connection.asked_too_much or connection.unsent_bytes > MAX_UNREAD_BYTES:
            self._refuse_busy(token, f"{connection.unsent_bytes} bytes of answers on this connection are not read yet")
            return False
        return True

    def refuse(self, token: int, code: int, kind: str, message: str, hint: str = "") -> None:
        """Answer that it was not done, and why."""
        if (request := self._open.get(token)) is None:
            return
        line = protocol.encode_error(request.call.call_id, code, kind, message, hint)
        self._answer(token, request, line, more=False)

    def notify(self, token: int, method: str, params: dict[str, Any]) -> None:
        """Send one line of a stream. A reader that is too far behind is told `lagged`, and closed."""
        if request := self._open.get(token):
            request.connection.stream(protocol.encode_notification(method, params))

    def has_room(self, token: int, on_room: Callable[[], None]) -> bool:
        """Whether more of a stream may follow without its reader lagging.

        If not, `on_room` is called on a turn of the loop as soon as it may, unless the client has gone by then.
        """
        request = self._open.get(token)
        return request is not None and request.connection.has_room(token, on_room)

    def is_open(self, token: int) -> bool:
        """Whether it may still be answered."""
        return token in self._open

    def end(self, token: int) -> None:
        """Nothing more comes for this request. `reply` and `refuse` see to it themselves."""
        if request := self._open.pop(token, None):
            self._release(token, request.connection)

    def open_requests(self) -> Iterator[tuple[int, str, Peer]]:
        """Token, method and sender of all that may still be answered."""
        for token, request in list(self._open.items()):
            yield token, request.call.method, request.connection.peer

    # -- the socket ------------------------------------------------------------------------------

    def set_mode(self, mode: int) -> None:
        """Who may connect from now on. Clients stay, and so may those that wait to be taken. OSError."""
        if os.lstat(self._path).st_ino == self._inode:  # not another one's by now
            os.chmod(self._path, mode)  # noqa: PTH101

    def close(self) -> None:
        """Close every connection and take the socket away."""
        for fd in (self._listener.fileno(), self._hangups.fileno()):
            self._loop.unwatch(fd)
        self._open.clear()
        for connection in list(self._connections.values()):
            connection.drop()
        self._listener.close()
        self._hangups.close()
        with contextlib.suppress(OSError):
            if os.lstat(self._path).st_ino == self._inode:  # not another one's by now
                os.unlink(self._path)  # noqa: PTH108

    def _answer(self, token: int, request: _Open, line: bytes, *, more: bool) -> None:
        if not more:
            del self._open[token]  # first: should the client turn out to have left, nobody asks for word of it
        if request.call.expects_reply:
            request.connection.send(line)
        if not more:
            self._release(token, request.connection)

    def _refuse_busy(self, token: int, message: str) -> None:
        self.refuse(token, protocol.REFUSED, "busy", message, "read what was answered, then ask again, or for less")

    def _is_full(self) -> bool:
        return sum(each.unsent_bytes for each in self._connections.values()) > MAX_UNREAD_BY_ALL_BYTES

    def _release(self, token: int, connection: Connection) -> None:
        connection.tokens.discard(token)
        connection.resume()

    # -- questions -------------------------------------------------------------------------------

    def _take(self, connection: Connection, line: bytes) -> None:
        try:
            call = protocol.decode_call(line)
        except protocol.ProtocolError as error:
            connection.send(protocol.encode_error(error.call_id, error.code, error.kind, error.message, error.hint))
            return
        self._last_token += 1
        token = self._last_token
        self._open[token] = _Open(connection, call)
        connection.tokens.add(token)
        request = Request(token, call.method, call.params, call.request_id, connection.peer, connection.fd)
        self._on_request(request)

    # -- coming and going ------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTS_PER_TURN):
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause_accepting()
                    return
                continue  # it gave up before we came
            sock.setblocking(False)
            self._admit(sock, peer_of(sock))

    def _admit(self, sock: socket.socket, peer: Peer) -> None:
        """Give it a place, if there is one for the likes of it."""
        is_stranger = self._is_stranger(peer)
        has_place = len(self._connections) < self._max_connections
        if not has_place or (is_stranger and len(self._strangers) >= MAX_STRANGERS):
            _turn_away(sock, len(self._connections))
            return
        self._hangups.register(sock.fileno(), 0)
        if is_stranger:
            self._strangers.add(sock.fileno())
        self._connections[sock.fileno()] = Connection(sock, peer, self._loop, self._rota, self._take, self._forget)

    def _pause_accepting(self) -> None:
        """Without a descriptor to accept with, the listener would be readable for ever: rest a while."""
        self._loop.unwatch(self._listener.fileno())
        self._loop.call_at(time.monotonic() + ACCEPT_PAUSE_S, self._resume_accepting)

    def _resume_accepting(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.watch(self._listener.fileno(), read=self._accept)

    def _hung_up(self) -> None:
        for fd, _mask in self._hangups.poll(0):
            if connection := self._connections.get(fd):
                connection.hung_up()

    def _forget(self, connection: Connection) -> None:
        """It is closed: whatever it still asked for is reported as gone."""
        del self._connections[connection.fd]
        self._strangers.discard(connection.fd)
        self._hangups.unregister(connection.fd)
        for token in connection.tokens:
            if self._open.pop(token, None):
                self._loop.call_at(0.0, partial(self._on_gone, token))


def _max_connections() -> int:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return protocol.MAX_CONNECTIONS
    return max(1, min(protocol.MAX_CONNECTIONS, soft // DESCRIPTORS_PER_CLIENT))


def _turn_away(sock: socket.socket, served: int) -> None:
    """One client too many: say so, and take what it sent, lest the close look like a reset to it."""
    message = f"the daemon serves {served} connections already"
    line = protocol.encode_error(None, protocol.REFUSED, "busy", message, "try again in a moment")
    with sock, contextlib.suppress(OSError):
        sock.send(line)
        sock.recv(READ_BYTES)


def _listen(path: str, mode: int) -> socket.socket:
    """A listening socket at `path`, with this mode from its first moment on."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ControlError(f"socket path too long: {path}: choose one of at most {MAX_PATH_BYTES} bytes")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        folder = Path(path).parent
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            folder.chmod(0o755)  # whom the socket is for, its own mode says
        _clear_the_way(path)
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(MAX_WAITING)
    except OSError as error:
        sock.close()
        raise ControlError(f"cannot make the socket {path}: {error.strerror}: check the folder and its owner") from None
    except ControlError:
        sock.close()
        raise
    return sock


def _clear_the_way(path: str) -> None:
    """Remove a socket that nobody answers at. Called under the daemon's lock."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ControlError(f"{path} is in the way and is no socket: move it, or choose another socket path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # noqa: PTH108
            return
        except BlockingIOError:
            pass  # alive, with a full queue
    raise ControlError(f"another process answers at {path}: stop it, or choose another socket path")
