"""jobctl's end of the control socket: calls, answers, and the notifications of a stream.

Owns one connection. Knows the lines of `supervisor.protocol`, not what the methods mean. Called by the
commands. Everything that goes wrong is a Failure with the exit code that it deserves.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections import deque

from ctl.failure import Failure
from supervisor import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: A daemon that says nothing for so long is taken for dead.
REPLY_TIMEOUT_S = 30.0
READ_BYTES = 256 * 1024
#: The same time, as the kernel's timeval: seconds and microseconds.
_CONNECT_TIMEOUT = struct.pack("ll", int(REPLY_TIMEOUT_S), 0)


def find_socket(option: str | None) -> str:
    """The path to connect to: --socket, $JOBD_SOCKET, or where this user's daemon is by default."""
    return option or os.environ.get("JOBD_SOCKET") or protocol.default_socket(os.environ, os.geteuid())


class Client:
    """A connection. Blocking, except where a timeout says otherwise."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lines = protocol.LineSplitter(protocol.MAX_REPLY_BYTES)
        self._notifications: deque[tuple[str, dict[str, Any]]] = deque()
        self._last_id = 0
        self._sock = socket.socket(socket.AF_UNIX)
        # Not by settimeout: a socket that does not block gives up at once if the daemon is slow to take clients.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _CONNECT_TIMEOUT)
        try:
            self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            raise _cannot_connect(path, error) from None

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def call(self, method: str, params: dict[str, Any], timeout_s: float | None = REPLY_TIMEOUT_S) -> dict[str, Any]:
        """Ask, and wait for the answer; None = however long it takes."""
        return self.receive(self.send(method, params), timeout_s)

    def send(self, method: str, params: dict[str, Any]) -> int:
        """Ask only; the returned id is for `receive`."""
        self._last_id += 1
        self._sock.settimeout(REPLY_TIMEOUT_S)
        try:
            self._sock.sendall(protocol.encode_call(self._last_id, method, params))
        except OSError:
            pass  # the daemon hung up; it may have said why, and that is read next
        return self._last_id

    def receive(self, call_id: int, timeout_s: float | None = REPLY_TIMEOUT_S) -> dict[str, Any]:
        """The result of the call with this id. Notifications that come first are kept for later."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            message = self._next_message(deadline)
            if message is None:
                hint = f"is it stopped, or is the machine overloaded? it was asked at {self.path}"
                raise Failure(protocol.EXIT_UNREACHABLE, "unreachable", f"jobd did not answer in {timeout_s:g} s", hint)
            if "method" in message:
                self._notifications.append((message["method"], message.get("params", {})))
            elif "error" in message and message.get("id") in (call_id, None):
                raise _refusal(message["error"])
            elif message.get("id") == call_id:
                result: dict[str, Any] = message["result"]
                return result

    def notification(self, timeout_s: float | None = None) -> tuple[str, dict[str, Any]] | None:
        """The next line of a stream: method and params. None: nothing came in that time (None = for ever)."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._notifications:
            message = self._next_message(deadline)
            if message is None:
                return None
            if "error" in message:  # the stream has ended before its time
                raise _refusal(message["error"])
            if "method" in message:
                self._notifications.append((message["method"], message.get("params", {})))
        return self._notifications.popleft()

    def has_more(self) -> bool:
        """Whether something was read already that `notification` may return at once."""
        return bool(self._notifications) or len(self._lines) > 0

    def _next_message(self, deadline: float | None) -> dict[str, Any] | None:
        while (line := self._lines.next_line()) is None:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._sock.settimeout(left_s)
            try:
                data = self._sock.recv(READ_BYTES)
            except (TimeoutError, BlockingIOError):
                return None
            except OSError:
                data = b""
            if not data:
                hint = f"see its log for why; once it answers again at {self.path}, `jobctl status` tells what was done"
                message = "jobd closed the connection before it answered"
                raise Failure(protocol.EXIT_UNREACHABLE, "unreachable", message, hint)
            self._lines.feed(data)
        return _decode(line)


def _decode(line: bytes) -> dict[str, Any]:
    import json

    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        hint = "is that a jobd's socket? name the right one with --socket"
        raise Failure(protocol.EXIT_UNREACHABLE, "unreachable", "what answers does not speak jobd's protocol", hint)
    return message


def _refusal(error: dict[str, Any]) -> Failure:
    data = error.get("data") or {}
    kind = data.get("kind", "refused")
    return Failure(protocol.exit_code(error.get("code", 1), kind), kind, error.get("message", ""), data.get("hint", ""))


def _cannot_connect(path: str, error: OSError) -> Failure:
    if error.errno in (errno.EACCES, errno.EPERM):
        message = f"not permitted to use {path}"
        return Failure(protocol.EXIT_NOT_PERMITTED, "not_permitted", message, "ask to join the group that owns it")
    why = error.strerror or str(error)
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
        why = "no jobd answers"
    hint = "start it with `jobd -c FILE`, or name its socket with --socket"
    return Failure(protocol.EXIT_UNREACHABLE, "unreachable", f"{why} at {path}", hint)
