"""Playbooks: a script of what happens (`>>`) and of all that must follow from it (`<<`).

    assert (
        Playbook(job("a"), job("b", needs=["a"]))
        >> start()   << "launch a"
        >> ends("a") << "a success, launch b"
        >> ends("b") << "b success, main success"
    )

What follows is written as short lines, in the engine's order: `launch a` (`launch a 2`: its second
attempt), `stop a`, `kill a`, `wind_down a`, a job's new state unless one of these shows it
(`b blocked`), that of a dag's run (`main failed`), `leave`, `answered` (a wait), the kind of a
refusal (`unknown_name`). Nothing may follow that is not written. After each step all records must
equal the engine's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from supervisor.core import commands
from supervisor.core.engine import Engine
from supervisor.core.events import (
    Booted,
    Cause,
    Configured,
    Decision,
    Dropped,
    Ending,
    Event,
    Exited,
    Journal,
    Launch,
    Leave,
    NotStarted,
    Now,
    Refusal,
    Reply,
    Requested,
    Signal,
    Started,
    TimeReached,
)
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import ACTIVE, Dag, Definitions, Job, Need, Outcome, State
from tests.core.fake_store import FakeStore

Step = Callable[["Playbook"], Event]
#: When every playbook begins: a Monday at noon, UTC.
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()


# ---- definitions -----------------------------------------------------------------------------------


def need(text: str) -> Need:
    name, _, outcome = text.partition(":")
    return Need(name, Outcome(outcome or "success"))


def job(name: str, needs: Sequence[str | Sequence[str]] = (), dag: str = "main", **keys: Any) -> Job:
    """A job as in jobs.toml: `needs=["a", ["b", "c:done"]]`; other keys are those of `Job`."""
    groups = tuple((need(each),) if isinstance(each, str) else tuple(map(need, each)) for each in needs)
    return Job(name=name, dag=dag, command="true", dir="/", needs=groups, **keys)


def define(
    jobs: Iterable[Job], dags: Sequence[Dag] = (), pools: dict[str, int] | None = None, max_running: int = 0
) -> Definitions:
    """`dags`: those that have keys of their own. Each gets its jobs here, which are in dependency order."""
    members: dict[str, list[Job]] = {}
    for each in jobs:
        members.setdefault(each.dag, []).append(each)
    named = {name: Dag(name=name) for name in members} | {dag.name: dag for dag in dags}
    filled = {name: replace(dag, jobs=tuple(members.get(name, ()))) for name, dag in named.items()}
    return Definitions(dags=filled, pools=pools or {}, max_running=max_running)


# ---- what happens ----------------------------------------------------------------------------------


def ask(command: commands.Command, by: str = "ann") -> Step:
    return lambda book: Requested(book.next_token(), command, by)


def start(*names: str, **options: Any) -> Step:
    return ask(commands.Start(names=names, **options))


def stop(*names: str, **options: Any) -> Step:
    return ask(commands.Stop(names=names, **options))


def retry(*names: str, **options: Any) -> Step:
    return ask(commands.Retry(names=names, **options))


def restart(*names: str, **options: Any) -> Step:
    return ask(commands.Restart(names=names, **options))


def hold(*names: str, **options: Any) -> Step:
    return ask(commands.Hold(names=names, **options))


def release(*names: str, **options: Any) -> Step:
    return ask(commands.Release(names=names, **options))


def skip(*names: str, **options: Any) -> Step:
    return ask(commands.Skip(names=names, **options))


def mark(*names: str, outcome: str = "success", **options: Any) -> Step:
    return ask(commands.Mark(names=names, outcome=outcome, **options))


def report(outcome: str, name: str, **options: Any) -> Step:
    return ask(commands.Report(outcome=outcome, job=name, **options))


def wait(*names: str, **options: Any) -> Step:
    return ask(commands.Wait(names=names, **options))


def shutdown(**options: Any) -> Step:
    return ask(commands.Shutdown(**options))


def boots() -> Step:
    return lambda _book: Booted()


def begins(name: str) -> Step:
    """The job's process was seen to run."""
    return lambda book: Started(book.attempt_id(name), 4711, book.now.wall)


def ends(name: str, code: int = 0, *, run: str | None = None, **ending: Any) -> Step:
    """The newest attempt of the job is over: by itself, with this code, or as the fields of Ending say."""
    fields = {"cause": Cause.EXITED, "exit_code": code, **ending}
    return lambda book: Exited(book.attempt_id(name, run), Ending(**fields))


def is_killed(name: str, number: int) -> Step:
    return ends(name, exit_code=None, signal=number)


def is_gone(name: str, run: str | None = None) -> Step:
    """It has stopped, as it was told to."""
    return ends(name, run=run, cause=Cause.STOPPED, exit_code=None, signal=15)


def is_lost(name: str) -> Step:
    return ends(name, cause=Cause.LOST, exit_code=None, text="its shim was killed")


def times_out(name: str) -> Step:
    return ends(name, cause=Cause.TIMEOUT, exit_code=None, signal=15)


def cannot_start(name: str) -> Step:
    return ends(name, cause=Cause.UNSTARTABLE, exit_code=None, text="could not start: no such command")


def was_not_started(name: str) -> Step:
    return lambda book: NotStarted(book.attempt_id(name), "fork: Resource temporarily unavailable")


def later(seconds: float) -> Step:
    def pass_time(book: Playbook) -> Event:
        book.now = Now(book.now.wall + seconds, book.now.mono + seconds)
        return TimeReached()

    return pass_time


def reload(*jobs: Job, **options: Any) -> Step:
    return lambda _book: Configured(define(jobs, **options))


def drops_out() -> Step:
    """Whoever asked last is gone."""
    return lambda book: Dropped(book.token)


# ---- the playbook ----------------------------------------------------------------------------------


class Playbook:
    """One engine, its records, and what has followed from the last step. True once all of it was expected."""

    def __init__(self, *jobs: Job, **options: Any) -> None:
        self.store = FakeStore()
        self.now = Now(NOON, 1000.0)
        self.engine = Engine(define(jobs, **options), self.store.has_run)
        self.token = 0
        self.result: dict[str, Any] = {}  # of the last answer that was no refusal
        self.refusal: Refusal | None = None
        self.decisions: list[Decision] = []  # of the last step
        self._unexpected: list[str] = []

    def __rshift__(self, step: Step) -> Playbook:
        assert not self._unexpected, f"not expected: {', '.join(self._unexpected)}"
        event = step(self)
        self.decisions = self.engine.handle(event, self.now)
        self.store.commit(self.decisions)
        self.store.check_equals(self.engine)
        self._unexpected = [line for decision in self.decisions if (line := self._line(decision, event))]
        return self

    def __lshift__(self, expected: str) -> Playbook:
        lines = expected.split(", ")
        found, self._unexpected = self._unexpected[: len(lines)], self._unexpected[len(lines) :]
        assert found == lines, f"expected: {expected}; found: {', '.join([*found, *self._unexpected]) or 'nothing'}"
        return self

    def forget(self) -> Playbook:
        """What followed from the last step is of no interest."""
        self._unexpected.clear()
        return self

    def __bool__(self) -> bool:
        assert not self._unexpected, f"not expected: {', '.join(self._unexpected)}"
        return True

    def reborn(self, asleep_s: float = 1.0, jobs: Iterable[Job] = ()) -> Playbook:
        """The daemon is killed; another one begins with what was saved."""
        assert not self._unexpected, f"not expected: {', '.join(self._unexpected)}"
        definitions = define(jobs) if jobs else self.engine.definitions
        self.now = Now(self.now.wall + asleep_s, 5.0)
        self.engine = Engine(definitions, self.store.has_run)
        self.engine.restore(self.store.snapshot(), self.now)
        return self >> boots()

    def _line(self, decision: Decision, event: Event) -> str:
        """A decision in short; empty for those that are not shown."""
        match decision:
            case Launch():
                return f"launch {decision.job.name}" + (f" {decision.number}" if decision.number > 1 else "")
            case Signal(attempt_id, halt):
                return f"{halt} {self.store.attempts[attempt_id].job}"
            case Leave():
                return "leave"
            case Reply():
                return self._reply(decision, event)
            case Journal(entry):
                if entry.job is not None and entry.kind in set(State) - ACTIVE:
                    return f"{entry.job} {entry.kind}"
                if entry.kind in ("held", "released"):
                    return f"{entry.job or entry.dag} {entry.kind}"
                if entry.kind in ("run_success", "run_failed", "run_stopped", "run_resumed"):
                    return f"{entry.dag} {entry.kind.removeprefix('run_')}"
                return entry.kind if entry.kind in ("start_refused", "reloaded") else ""
        return ""

    def _reply(self, reply: Reply, event: Event) -> str:
        if isinstance(reply.result, Refusal):
            self.refusal = reply.result
            return reply.result.kind
        self.result, self.refusal = reply.result, None
        if isinstance(event, Requested) and event.token == reply.token and not isinstance(event.command, commands.Wait):
            return ""
        return "answered"

    # ---- what the steps and the tests look at ----

    def next_token(self) -> int:
        self.token += 1
        return self.token

    def run(self, name: str | None = None, dag: str = "main") -> LiveRun:
        found = self.engine.registry.by_name(name) if name else self.engine.registry.newest(dag)
        assert found is not None
        return found

    def live(self, name: str, run: str | None = None) -> LiveNode:
        """A job in the run of this name, by default in the newest that has it."""
        if run is not None:
            return self.run(run).nodes[name]
        return [live_run.nodes[name] for live_run in self.engine.registry if name in live_run.nodes][-1]

    def attempt_id(self, name: str, run: str | None = None) -> int:
        attempt_id = self.live(name, run).node.attempt_id
        assert attempt_id is not None
        return attempt_id

    @property
    def states(self) -> dict[str, str]:
        return {name: str(live.state) for name, live in self.run().nodes.items()}

    @property
    def changed(self) -> list[str]:
        """What the last answer says was changed: `a failed->queued`."""
        return [f"{each['job']} {each['from']}->{each['to']}" for each in self.result["changed"]]

    @property
    def ignored(self) -> dict[str, str]:
        return {each["job"]: each["why"] for each in self.result["ignored"]}
