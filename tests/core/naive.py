"""The rules once more, written from the interface's own words and as plainly as can be.

Nothing of the engine's bookkeeping is used, only its nouns: each question is answered from the states
of all jobs, however long that takes. The simulation holds the engine against these answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from supervisor.core.events import Cause, Ending
from supervisor.core.model import Definitions, Finish, Job, Need


@dataclass
class Fact:
    """What the journal last said of a job: its state, and who set it if that was a person."""

    state: str = "stopped"
    by: str | None = None

    @property
    def by_operator(self) -> bool:
        return self.by is not None


class Upstream(Protocol):
    """What must be known of a job to see how needs of it stand."""

    @property
    def state(self) -> str: ...
    @property
    def by_operator(self) -> bool: ...


def need_stands(need: Need, facts: Mapping[str, Upstream]) -> str:
    """`met`, `pending`, `blocked` (until someone acts) or `impossible`."""
    upstream = facts[need.job]
    if upstream.state in ("queued", "running", "stopping"):
        return "pending"
    if upstream.state in ("stopped", "blocked"):
        return "blocked"
    failed = upstream.state in ("failed", "lost")
    match need.outcome:
        case "done":
            return "met"
        case "failed":
            return "met" if failed else "impossible"
        case _:
            if upstream.state == "success" or (upstream.state == "skipped" and upstream.by_operator):
                return "met"
            return "blocked" if failed else "impossible"


def needs_stand(job: Job, facts: Mapping[str, Upstream]) -> str:
    """All groups are needed, any member of a group will do."""
    worst = "met"
    order = ["met", "pending", "blocked", "impossible"]
    for group in job.needs:
        best = min((need_stands(need, facts) for need in group), key=order.index)
        worst = max(worst, best, key=order.index)
    return worst


def run_state(states: list[str]) -> str:
    if any(state in ("queued", "running", "stopping") for state in states):
        return "running"
    if any(state in ("failed", "lost", "blocked") for state in states):
        return "failed"
    return "stopped" if "stopped" in states else "success"


def full(job: Job, everyone: list[Job], definitions: Definitions) -> set[str]:
    """The limits of `job` that `everyone` at once, it among them, exceeds."""
    dag = definitions.dags.get(job.dag)
    slots = definitions.pools.get(job.pool or "", 1)
    exceeded = set()
    if 0 < definitions.max_running < len(everyone):
        exceeded.add("max_running")
    if dag is not None and 0 < dag.max_running < sum(each.dag == job.dag for each in everyone):
        exceeded.add("dag")
    if job.pool and sum(min(each.slots, slots) for each in everyone if each.pool == job.pool) > slots:
        exceeded.add("pool")
    return exceeded


def outcome(job: Job, reported: str | None, ending: Ending, stopping: bool) -> str | None:
    """The final state of an attempt; None: its processes have ended well, but someone has yet to report."""
    if reported is not None:
        return str(reported)
    if ending.cause is Cause.LOST:
        return "lost"
    if ending.cause is Cause.STOPPED:
        return "stopped"
    if ending.cause is not Cause.EXITED or ending.signal is not None:
        return "failed"
    if ending.exit_code in job.skip_codes:
        return "skipped"
    if ending.exit_code not in job.success_codes:
        return "failed"
    if job.finish is Finish.REPORT:
        return "stopped" if stopping else None
    return "success"


def is_retried(job: Job, ended: str, ending: Ending | None, tries: int) -> bool:
    """`ending` None: it was a report, or the lack of one, that ended it."""
    if ended != "failed" or tries >= job.retries:
        return False
    if job.retry_codes is None:
        return True
    return ending is not None and ending.cause is Cause.EXITED and ending.exit_code in job.retry_codes


#: The least that a lost job waits before it is started again, seconds.
LOST_DELAY_S = 1.0


def retry_delay_s(job: Job, retries_before: int) -> float:
    delay_s = job.retry_delay_s * job.retry_backoff**retries_before
    return delay_s if job.retry_max_delay_s is None else min(delay_s, job.retry_max_delay_s)
