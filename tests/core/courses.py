"""Runs and their jobs as `reference` keeps them: what CONTRACT says of each, and nothing to speed it up."""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.core.events import Ending
from supervisor.core.model import Job, Node, State
from tests.core import naive

WAITING = ("queued", "blocked")
ACTIVE = ("running", "stopping")
NEVER = float("inf")


@dataclass(eq=False)
class Seat:
    """One job in one run. `fails_at`: its processes are gone, and if no report comes by then it has failed."""

    run: Course
    job: Job
    state: str
    by_operator: bool = False
    forced: bool = False
    again: bool = False
    tries: int = 0
    attempts: int = 0
    attempt: int | None = None
    reported: str | None = None
    ending: Ending | None = None
    fails_at: float | None = None
    due: float | None = None  # monotonic: not before
    due_wall: float | None = None

    @property
    def awaits_report(self) -> bool:
        return self.fails_at is not None

    def as_node(self) -> Node:
        """Its durable form, without the reason."""
        return Node(
            run_id=self.run.id,
            job=self.job.name,
            state=State(self.state),
            attempts=self.attempts,
            attempt_id=self.attempt,
            tries=self.tries,
            retry_at=self.due_wall,
            forced=self.forced,
            again=self.again,
            by_operator=self.by_operator,
        )


@dataclass(eq=False)
class Course:
    """One run. `gate`: the run in which nothing may be under way before this one starts anything.

    `gate_is_vague`: that was so while this run had ended, and the daemon had it in memory or not; then it is
    no promise that it still waits, should something be under way there again, nor that it does not.
    """

    id: int
    name: str
    dag: str
    seats: dict[str, Seat] = field(default_factory=dict)
    gate: Course | None = None
    gate_is_vague: bool = False

    @property
    def state(self) -> str:
        return naive.run_state([seat.state for seat in self.seats.values()])

    @property
    def active(self) -> bool:
        return any(seat.state in ACTIVE for seat in self.seats.values())
