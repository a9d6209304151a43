"""The states of a job: every legal move in one table, and the verdict on an attempt that ended.

The engine moves jobs by this table only; the diagram in docs/architecture.md is made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from signal import Signals

from supervisor.core.events import Cause, Ending
from supervisor.core.model import Attempt, Job, Outcome, State

#: No automatic retry waits longer, however its delay has grown.
MAX_RETRY_DELAY_S = 365 * 86400.0

_S = State


class Move(StrEnum):
    """Why a job changes its state."""

    ASK = "asked for"
    DROP = "stopped before it began"
    BLOCK = "an upstream failed, is lost or stopped"
    UNBLOCK = "the upstream goes on"
    RULE_OUT = "its condition can no longer come true"
    LAUNCH = "needs, time and slot allow"
    TAKE_BACK = "nothing was started"
    HALT = "told to stop"
    HALTED = "stopped"
    SUCCEED = "ended well"
    FAIL = "ended badly"
    RETRY = "ended badly, tries left"
    LOSE = "nobody saw the end"
    PASS = "ended with a skip code"
    SKIP = "skipped by an operator"
    MARK_SUCCESS = "marked by an operator as success"
    MARK_FAILED = "marked by an operator as failed"


#: move -> (states it is legal in, state it leads to)
TRANSITIONS: dict[Move, tuple[frozenset[State], State]] = {
    move: (frozenset(sources), target)
    for move, sources, target in (
        (Move.ASK, (_S.STOPPED, _S.SUCCESS, _S.FAILED, _S.LOST, _S.SKIPPED), _S.QUEUED),
        (Move.DROP, (_S.QUEUED, _S.BLOCKED), _S.STOPPED),
        (Move.BLOCK, (_S.QUEUED,), _S.BLOCKED),
        (Move.UNBLOCK, (_S.BLOCKED,), _S.QUEUED),
        (Move.RULE_OUT, (_S.QUEUED, _S.BLOCKED), _S.SKIPPED),
        (Move.LAUNCH, (_S.QUEUED,), _S.RUNNING),
        (Move.TAKE_BACK, (_S.RUNNING,), _S.QUEUED),
        (Move.HALT, (_S.RUNNING,), _S.STOPPING),
        (Move.HALTED, (_S.RUNNING, _S.STOPPING), _S.STOPPED),
        (Move.SUCCEED, (_S.RUNNING, _S.STOPPING), _S.SUCCESS),
        (Move.FAIL, (_S.RUNNING, _S.STOPPING), _S.FAILED),
        (Move.RETRY, (_S.RUNNING,), _S.QUEUED),
        (Move.LOSE, (_S.RUNNING, _S.STOPPING), _S.LOST),
        (Move.PASS, (_S.RUNNING, _S.STOPPING), _S.SKIPPED),
        (Move.SKIP, (_S.STOPPED, _S.QUEUED, _S.BLOCKED, _S.FAILED, _S.LOST, _S.SKIPPED), _S.SKIPPED),
        (Move.MARK_SUCCESS, (_S.STOPPED, _S.QUEUED, _S.BLOCKED, _S.FAILED, _S.LOST, _S.SKIPPED), _S.SUCCESS),
        (Move.MARK_FAILED, (_S.STOPPED, _S.QUEUED, _S.BLOCKED, _S.SUCCESS, _S.LOST, _S.SKIPPED), _S.FAILED),
    )
}


#: Moves by which a person, not the job, decides about the outcome.
BY_OPERATOR = frozenset({Move.SKIP, Move.MARK_SUCCESS, Move.MARK_FAILED})


class IllegalMoveError(Exception):
    """The engine tried a move that the table does not allow; nothing was changed."""


def target_of(move: Move, state: State) -> State:
    """The state that `move` leads to. Raises IllegalMoveError."""
    sources, target = TRANSITIONS[move]
    if state not in sources:
        raise IllegalMoveError(f"a job that is {state} cannot be moved by {move.name}: {move.value}")
    return target


def diagram() -> str:
    """The table as a Mermaid state diagram: one arrow for all moves from one state to another."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for move, (sources, target) in TRANSITIONS.items():
        for source in State:
            if source in sources:
                arrows.setdefault((source, target), []).append(move.name.lower().replace("_", " "))
    lines = [f"    {source} --> {target}: {', '.join(moves)}" for (source, target), moves in sorted(arrows.items())]
    return "\n".join(["stateDiagram-v2", "    [*] --> stopped", "    [*] --> queued", *lines])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an ending means for the job. `move` is one of the moves out of running."""

    move: Move
    reason: str


def judge(job: Job, attempt: Attempt, ending: Ending) -> Verdict:
    """The outcome of an attempt. What was reported counts more than how the processes ended."""
    if attempt.reported is not None:
        return judge_report(attempt)
    match ending.cause:
        case Cause.LOST:
            return Verdict(Move.LOSE, ending.text or "its outcome is not known")
        case Cause.UNSTARTABLE:
            return Verdict(Move.FAIL, ending.text)
        case Cause.TIMEOUT:
            return Verdict(Move.FAIL, f"timed out after {format_duration(job.timeout_s or 0)}")
        case Cause.STOPPED:
            return Verdict(Move.HALTED, "stopped")
        case Cause.EXITED:
            return _judge_exit(job, ending)


def judge_report(attempt: Attempt) -> Verdict:
    """The outcome of an attempt that someone has told."""
    told = f"reported {attempt.reported}" + (f": {attempt.message}" if attempt.message else "")
    return Verdict(Move.SUCCEED if attempt.reported is Outcome.SUCCESS else Move.FAIL, told)


def _judge_exit(job: Job, ending: Ending) -> Verdict:
    if ending.signal is not None:
        return Verdict(Move.FAIL, f"killed by signal {ending.signal} ({_signal_name(ending.signal)})")
    if ending.exit_code in job.skip_codes:
        return Verdict(Move.PASS, f"skip code {ending.exit_code}")
    if ending.exit_code in job.success_codes:
        return Verdict(Move.SUCCEED, "" if ending.exit_code == 0 else f"exit code {ending.exit_code}")
    return Verdict(Move.FAIL, f"exit code {ending.exit_code}")


def may_retry(job: Job, tries: int, ending: Ending | None) -> bool:
    """Whether a failed attempt is tried again by itself; `tries`: automatic retries already used.

    `ending` is None for one that failed after its processes had ended, by a report or the lack of one.
    """
    if tries >= job.retries:
        return False
    return job.retry_codes is None or (
        ending is not None and ending.cause is Cause.EXITED and ending.exit_code in job.retry_codes
    )


def retry_delay_s(job: Job, tries: int) -> float:
    """Seconds to wait before automatic retry number `tries` + 1."""
    if not job.retry_delay_s:
        return 0.0
    longest_s = MAX_RETRY_DELAY_S if job.retry_max_delay_s is None else job.retry_max_delay_s
    try:
        delay_s = job.retry_delay_s * job.retry_backoff**tries
    except OverflowError:
        delay_s = MAX_RETRY_DELAY_S
    return min(delay_s, longest_s, MAX_RETRY_DELAY_S)


def format_duration(seconds: float) -> str:
    """`5400` -> `1h30m`: the two largest units, as people write durations in the configuration."""
    if seconds < 60:
        return f"{seconds:g}s"
    parts: list[str] = []
    rest = round(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return "unnamed"
