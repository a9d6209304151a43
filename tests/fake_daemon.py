"""A daemon without jobs: the real control socket on the real loop, in a thread, with answers made for tests."""

from __future__ import annotations

import os
import socket
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


# ---- records in the shapes of the socket -------------------------------------------------------

RUN_NAME = "nightly@2026-11-23T02:00"


def job(name: str, state: str = "success", **fields: Any) -> dict[str, Any]:
    """A JOB, as `status` lists it."""
    ran = state in ("success", "failed", "lost", "running", "stopping")
    record = {
        "job": name,
        "dag": "nightly",
        "run": RUN_NAME,
        "state": state,
        "held": False,
        "reason": "",
        "waiting_for": [],
        "attempt": 1 if ran else None,
        "retries_left": 0,
        "pid": None,
        "exit_code": None,
        "signal": None,
        "started_at": "2026-11-23T01:00:05.000Z" if ran else None,
        "finished_at": None,
        "duration_s": 12.0 if ran else None,
        "data": None,
        "tags": [],
    }
    return record | fields


def run(state: str = "success", **fields: Any) -> dict[str, Any]:
    """A RUN, as `status` lists it."""
    record = {
        "run": RUN_NAME,
        "dag": "nightly",
        "run_date": "2026-11-23",
        "state": state,
        "trigger": "schedule",
        "started_at": "2026-11-23T01:00:00.000Z",
        "finished_at": None,
    }
    return record | fields


def night(state: str, *jobs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The result of `status` with one run."""
    about = {"pid": 1, "version": "0.1.0", "started_at": "2026-11-23T00:00:00.000Z", "config": "", "state": "running"}
    return {"daemon": about, "runs": [run(state, **fields)], "jobs": list(jobs)}


def event(number: int, kind: str = "success", **fields: Any) -> dict[str, Any]:
    """One entry of the journal."""
    record = {
        "id": number,
        "at": "2026-11-23T01:00:05.000Z",
        "kind": kind,
        "run": RUN_NAME,
        "dag": "nightly",
        "job": "load",
        "attempt": 1,
        "text": "",
        "by": None,
    }
    return record | fields
