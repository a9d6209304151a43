"""A daemon without jobs: the real control socket on the real loop, in a thread, with answers made for tests.

Run as a program it plays a little night for looking at jobctl: `python tests/fake_daemon.py SOCKET [JOBS]`.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from supervisor import protocol
from supervisor.control import Control, Request
from supervisor.loop import Loop

Answer = Callable[["FakeDaemon", Request], None]
DEADLINE_S = 10.0


def replying(result: dict[str, Any]) -> Answer:
    return lambda daemon, request: daemon.control.reply(request.token, result)


def refusing(code: int, kind: str, message: str, hint: str = "") -> Answer:
    return lambda daemon, request: daemon.control.refuse(request.token, code, kind, message, hint)


def silent(_daemon: FakeDaemon, _request: Request) -> None:
    """Leave the request open."""


class FakeDaemon:
    """Answers each method as told; keeps what was asked in `requests` and what was given up in `gone`."""

    def __init__(self, path: str, answers: dict[str, Answer] | None = None, mode: int = 0o660) -> None:
        self.path = path
        self.answers = {"ping": replying({"pid": os.getpid(), "version": "0.1.0"})} | (answers or {})
        self.requests: list[Request] = []
        self.gone: list[int] = []
        self.turns = 0
        self.loop = Loop()
        self.control = Control(path, self.loop, self._on_request, self.gone.append, mode)
        self._calls: list[Callable[[], None]] = []
        self._wakeup_r, self._wakeup_w = socket.socketpair()
        self.loop.watch(self._wakeup_r.fileno(), read=self._run_calls)
        self._running = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], None]) -> None:
        """Run it on the daemon's loop."""
        self._calls.append(function)
        self._wakeup_w.send(b"x")

    def notify(self, token: int, method: str, params: dict[str, Any]) -> None:
        self.call(lambda: self.control.notify(token, method, params))

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, "the daemon did not get there"
            time.sleep(0.002)

    def asked(self, method: str) -> list[Request]:
        return [request for request in self.requests if request.method == method]

    def stop(self) -> None:
        if self._thread.is_alive():
            self.call(self._leave)
            self._thread.join(DEADLINE_S)
        for end in (self._wakeup_r, self._wakeup_w):
            end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _serve(self) -> None:
        while self._running:
            self.loop.turn()
            self.turns += 1
        self.control.close()
        self.loop.close()

    def _leave(self) -> None:
        self._running = False

    def _run_calls(self) -> None:
        self._wakeup_r.recv(4096)
        while self._calls:
            self._calls.pop(0)()

    def _on_request(self, request: Request) -> None:
        self.requests.append(request)
        answer = self.answers.get(request.method)
        if answer is None:
            near = protocol.nearest(request.method, protocol.METHODS)
            message = f"no such method: {request.method}"
            answer = refusing(protocol.UNKNOWN_METHOD, "unknown_method", message, f"did you mean {near}?")
        answer(self, request)


def main() -> None:
    """Placeholder of the demonstration, see `demo_night`."""
    import demo_night

    demo_night.play(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 9)


if __name__ == "__main__":
    main()
