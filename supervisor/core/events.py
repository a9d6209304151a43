"""The two vocabularies between the engine and the world, side by side.

Events (past tense) come in, decisions (imperative) go out. Both are plain values; nothing here acts.
The order of a turn is: engine.handle(event, now) -> decisions, commit the Save… decisions in one
transaction, then perform the others, replies last.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from supervisor.core.model import Attempt, Definitions, Hold, Job, JournalEntry, Node, Run

if TYPE_CHECKING:
    from supervisor.core.commands import Command


class Now(NamedTuple):
    """One instant on two clocks, seconds. `wall` names and records; `mono` measures and waits."""

    wall: float
    mono: float


# ---- events: what happened ---------------------------------------------------------------------


class Cause(StrEnum):
    """Why an attempt ended, as its shim saw it."""

    EXITED = "exited"  # by itself
    STOPPED = "stopped"  # because it was told to
    TIMEOUT = "timeout"  # because its time was up
    UNSTARTABLE = "unstartable"  # the command could not be started
    LOST = "lost"  # nobody saw the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended. Exactly one of `exit_code` and `signal` is set if the main process was seen to end."""

    cause: Cause
    exit_code: int | None = None
    signal: int | None = None
    text: str = ""  # what went wrong, for UNSTARTABLE and LOST
    started_at: float | None = None
    finished_at: float | None = None
    duration_s: float | None = None  # monotonic
    cpu_s: float | None = None
    max_rss_bytes: int | None = None
    log_dropped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The attempt's main process runs."""

    attempt_id: int
    pid: int
    at: float


@dataclass(frozen=True, slots=True)
class Exited:
    """No process of the attempt is left; this is its end."""

    attempt_id: int
    ending: Ending


@dataclass(frozen=True, slots=True)
class NotStarted:
    """Nothing of the attempt ever ran and nothing ever will (fork failed, daemon died in between)."""

    attempt_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Requested:
    """Someone gave a command. `token` is where the reply goes; `by` is who, for the journal."""

    token: int
    command: Command
    by: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Someone asked for what he may not do. Nothing follows but an entry in the journal."""

    text: str
    by: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """Whoever held this token is gone; nobody waits for the reply any more."""

    token: int


@dataclass(frozen=True, slots=True)
class Configured:
    """The definitions were read (again); `by`: who asked for that, if someone did."""

    definitions: Definitions
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Booted:
    """The daemon has started; all durable state is restored."""


@dataclass(frozen=True, slots=True)
class TimeReached:
    """The deadline that the engine named has come (or may have)."""


Event = Started | Exited | NotStarted | Requested | Refused | Dropped | Configured | Booted | TimeReached


# ---- decisions: what to do ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SaveRun:
    run: Run


@dataclass(frozen=True, slots=True)
class SaveNode:
    node: Node


@dataclass(frozen=True, slots=True)
class SaveAttempt:
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class DeleteAttempt:
    """The attempt never started; it is not consumed."""

    attempt_id: int


@dataclass(frozen=True, slots=True)
class SaveHold:
    hold: Hold


@dataclass(frozen=True, slots=True)
class DeleteHold:
    name: str


@dataclass(frozen=True, slots=True)
class Journal:
    entry: JournalEntry


Save = SaveRun | SaveNode | SaveAttempt | DeleteAttempt | SaveHold | DeleteHold | Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Start this attempt. Carries all that the executor needs."""

    attempt_id: int
    number: int
    job: Job
    run: str
    run_date: str
    timezone: str
    log: str  # path relative to the log folder


class Halt(StrEnum):
    """How to end an attempt that is under way."""

    STOP = "stop"  # stop_signal, CONT, stop_timeout, then KILL until no process is left
    KILL = "kill"  # KILL at once until no process is left
    WIND_DOWN = "wind_down"  # its outcome was reported: let it end by itself for stop_timeout, then STOP


@dataclass(frozen=True, slots=True)
class Signal:
    """End this attempt; an Exited event follows."""

    attempt_id: int
    halt: Halt


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a command was not done. `code` is CONTRACT's: 1 refused, 4 unknown name, 5 not permitted."""

    code: int
    kind: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer a request: a result in CONTRACT's JSON shape, or a refusal."""

    token: int
    result: dict[str, Any] | Refusal


@dataclass(frozen=True, slots=True)
class Leave:
    """The daemon may exit now."""


Decision = Save | Launch | Signal | Reply | Leave
