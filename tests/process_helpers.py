"""A real executor with real shims in a folder of its own, for tests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from supervisor import record
from supervisor.core.events import Ending, Event, Exited, Halt, Launch, NotStarted, Signal, Started
from supervisor.core.model import Job
from supervisor.executor import Executor
from supervisor.loop import Loop

#: A test that waits so long has failed.
DEADLINE_S = 30.0

T = TypeVar("T", Started, Exited, NotStarted)


class World:
    """An executor, its loop, and all that it has said so far."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.loop = Loop()
        self.said: list[Event] = []
        self.executor = Executor(state_dir, state_dir / "jobd.sock", self.loop, self.said.append)
        self.executor.open()
        self.is_open = True
        self.started: list[int] = []

    def start(self, command: str | tuple[str, ...], attempt_id: int | None = None, **fields: Any) -> int:
        """Start a job that is defined by these fields of Job; the attempt's id."""
        if attempt_id is None:
            attempt_id = 1 + max([0, *self.started])
        self.started.append(attempt_id)
        fields.setdefault("dir", str(self.state_dir))
        job = Job(name=f"job-{attempt_id}", dag="main", command=command, **fields)
        self.executor.start(
            Launch(
                attempt_id=attempt_id,
                number=1,
                job=job,
                run="main@2026-03-01T02:00",
                run_date="2026-03-01",
                timezone="Europe/Berlin",
                log=f"main/main@2026-03-01T02:00/{job.name}.1.log",
            )
        )
        return attempt_id

    def halt(self, attempt_id: int, how: Halt) -> None:
        self.executor.signal(Signal(attempt_id, how))

    def hear(self, kind: type[T], attempt_id: int) -> T:
        """Wait until this has been said of the attempt."""
        self.turn_until(lambda: any(isinstance(event, kind) for event in self.of(attempt_id)))
        return next(event for event in self.of(attempt_id) if isinstance(event, kind))

    def end(self, attempt_id: int) -> Ending:
        """Wait for the end."""
        return self.hear(Exited, attempt_id).ending

    def run(self, command: str | tuple[str, ...], **fields: Any) -> Ending:
        return self.end(self.start(command, **fields))

    def output(self, command: str | tuple[str, ...], **fields: Any) -> str:
        """What a job that succeeds writes."""
        attempt_id = self.start(command, **fields)
        ending = self.end(attempt_id)
        assert ending.exit_code == 0, (ending, self.log(attempt_id))
        return self.log(attempt_id)

    def of(self, attempt_id: int) -> list[Started | Exited | NotStarted]:
        kinds = (Started, Exited, NotStarted)
        return [event for event in self.said if isinstance(event, kinds) and event.attempt_id == attempt_id]

    def log_path(self, attempt_id: int) -> Path:
        return self.state_dir / f"logs/main/main@2026-03-01T02:00/job-{attempt_id}.1.log"

    def log(self, attempt_id: int) -> str:
        return self.log_path(attempt_id).read_text()

    def record(self, attempt_id: int) -> dict[str, Any]:
        kept = record.read(f"{self.state_dir}/attempts/{attempt_id}.json")
        assert kept
        return kept

    def turn_until(self, condition: Callable[[], Any]) -> Any:
        """Let the loop go round until the condition holds; what it returned."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"waited {DEADLINE_S} s in vain; said so far: {self.said}"
            self.loop.turn(time.monotonic() + 0.05)
        return found

    def leave(self) -> None:
        """As a daemon does that is restarted: what runs goes on."""
        self.executor.close()
        self.loop.close()
        self.is_open = False

    def clean_up(self) -> None:
        """End everything, whatever the test has left."""
        if not self.is_open:
            return
        for attempt_id in self.started:
            self.halt(attempt_id, Halt.KILL)
        self.turn_until(lambda: all(any(not isinstance(e, Started) for e in self.of(i)) for i in self.started))
        self.leave()


def until(condition: Callable[[], Any]) -> Any:
    """Wait for something that happens elsewhere; what the condition returned."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s in vain"
        time.sleep(0.005)
    return found


def stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def state_of(pid: int) -> str | None:
    """R, S, T, Z …"""
    fields = stat_fields(pid)
    return fields[0] if fields else None


def parent_of(pid: int) -> int:
    fields = stat_fields(pid)
    assert fields
    return int(fields[1])


def lives(pid: int) -> bool:
    return state_of(pid) not in (None, "Z")


def processes_with(marker: str) -> set[int]:
    """Pids of living processes that have this text in their environment."""
    return {pid for pid in _pids() if lives(pid) and marker.encode() in _read(f"/proc/{pid}/environ")}


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
