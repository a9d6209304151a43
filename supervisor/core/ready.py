"""The queue of jobs that could start now but for slots: priority, then first come, first served.

Three kinds of limits: jobs at once over all, jobs at once in a dag, slots of a pool. A job that
meets a full limit is parked with that limit and looked at again when the limit gets room, so a
start or an end costs O(log n) however many wait. Within one limit nobody is overtaken by someone
who came later, so a job that needs many slots is not starved by small ones.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

#: Slots of a pool that is no longer configured, but that an older run still names.
FORGOTTEN_POOL_SLOTS = 1
NO_LIMIT = 2**62


class Candidate(Protocol):
    """What the queue must know of a job. Hashed by identity."""

    @property
    def priority(self) -> int: ...
    @property
    def dag_name(self) -> str: ...
    @property
    def pool(self) -> str | None: ...
    @property
    def slots(self) -> int: ...
    @property
    def forced(self) -> bool: ...


C = TypeVar("C", bound=Candidate)


@dataclass(slots=True, eq=False)
class _Ticket(Generic[C]):
    """A candidate's place. `parked_at`: the limit it waits for; `woken_by`: the one that let it try again."""

    candidate: C
    place: tuple[int, int]  # the smaller, the earlier
    limits: tuple[_Limit[C], ...]
    express: bool
    valid: bool = True
    parked_at: _Limit[C] | None = None
    woken_by: _Limit[C] | None = None

    def __lt__(self, other: _Ticket[C]) -> bool:
        return self.place < other.place


@dataclass(slots=True, eq=False)
class _Limit(Generic[C]):
    """Something that only so many can have at once, and who waits for it."""

    name: str
    capacity: int
    in_slots: bool  # a pool; else each job counts one
    used: int = 0
    parked: list[_Ticket[C]] = field(default_factory=list)

    def cost(self, candidate: C) -> int:
        # A job that wants more slots than a (meanwhile smaller) pool has may run when the pool is empty.
        return max(1, min(candidate.slots, self.capacity)) if self.in_slots else 1

    def first_parked(self) -> _Ticket[C] | None:
        while self.parked and not self.parked[0].valid:
            heapq.heappop(self.parked)
        return self.parked[0] if self.parked else None

    def refuses(self, ticket: _Ticket[C]) -> bool:
        """It has no room, or someone who came earlier waits for it."""
        if self.used + self.cost(ticket.candidate) > self.capacity:
            return True
        first = self.first_parked()
        return first is not None and first < ticket

    def __str__(self) -> str:
        kind, unit = ("pool", "slots") if self.in_slots else ("dag", "at once")
        return f"{kind} {self.name} ({self.capacity} {unit})"


class ReadyQueue(Generic[C]):
    """Who is next. `add` and `discard` as jobs become ready or not, `take` to start, `release` at the end."""

    def __init__(self) -> None:
        self._max_running = 0
        self._running: dict[C, tuple[tuple[_Limit[C], int], ...]] = {}  # what each has taken
        self._dags: dict[str, _Limit[C]] = {}
        self._pools: dict[str, _Limit[C]] = {}
        self._open: list[_Ticket[C]] = []
        self._express: deque[_Ticket[C]] = deque()
        self._tickets: dict[C, _Ticket[C]] = {}
        self._order = 0

    def configure(self, max_running: int, dag_limits: Mapping[str, int], pools: Mapping[str, int]) -> None:
        """Set the limits (0 = none, for all but pools). Who waits is looked at again."""
        self._max_running = max_running
        for name in dag_limits:
            self._dag(name)
        for name in pools:
            self._pool(name)
        for limit in (*self._dags.values(), *self._pools.values()):
            if limit.in_slots:
                limit.capacity = pools.get(limit.name, FORGOTTEN_POOL_SLOTS)
            else:
                limit.capacity = dag_limits.get(limit.name) or NO_LIMIT
            limit.used = 0
            for ticket in limit.parked:
                ticket.parked_at = None
            self._open += limit.parked
            limit.parked = []
        heapq.heapify(self._open)
        for candidate, taken in self._running.items():  # what they take may be more or less now
            self._occupy(candidate, tuple(limit for limit, _ in taken))

    def __contains__(self, candidate: C) -> bool:
        return candidate in self._tickets

    def __iter__(self) -> Iterator[C]:
        return iter(self._tickets)

    def add(self, candidate: C) -> None:
        """It may start. A candidate that is already here keeps its place."""
        known = self._tickets.get(candidate)
        if known is not None:
            if known.express or not candidate.forced:
                return
            self.discard(candidate)
        self._order += 1
        place = (-candidate.priority, self._order)
        ticket = self._tickets[candidate] = _Ticket(candidate, place, self._limits(candidate), candidate.forced)
        if ticket.express:
            self._express.append(ticket)
        else:
            heapq.heappush(self._open, ticket)

    def discard(self, candidate: C) -> None:
        """It may no longer start. Unknown ones are no error."""
        ticket = self._tickets.pop(candidate, None)
        if ticket is None:
            return
        ticket.valid = False
        for limit in (ticket.parked_at, ticket.woken_by):
            if limit is not None:
                self._wake(limit)

    def take(self) -> C | None:
        """The next to start, or None. Its slots are taken until `release`."""
        while self._express:
            ticket = self._express.popleft()
            if ticket.valid:
                return self._begin(ticket)
        while self._open and not self._is_full:
            ticket = heapq.heappop(self._open)
            if not ticket.valid:
                continue
            for limit in ticket.limits:
                if limit.refuses(ticket):
                    self._park(ticket, limit)
                    break
            else:
                return self._begin(ticket)
        return None

    def occupy(self, candidate: C) -> None:
        """Take slots without asking, for what is forced or already runs."""
        self._occupy(candidate, self._limits(candidate))

    def release(self, candidate: C) -> None:
        """Give back what it took."""
        for limit, cost in self._running.pop(candidate):
            limit.used -= cost
            if limit.parked:
                self._wake(limit)

    def waits_for(self, candidate: C) -> str | None:
        """The limit in its way, for people: `pool warehouse (4 slots)`; None if it is not in the queue."""
        ticket = self._tickets.get(candidate)
        if ticket is None:
            return None
        if ticket.parked_at is not None:
            return str(ticket.parked_at)
        return f"max_running ({self._max_running} at once)" if self._is_full else "its turn"

    # ---- inside ----

    @property
    def _is_full(self) -> bool:
        return 0 < self._max_running <= len(self._running)

    def _dag(self, name: str) -> _Limit[C]:
        return self._dags.get(name) or self._dags.setdefault(name, _Limit(name, NO_LIMIT, False))

    def _pool(self, name: str) -> _Limit[C]:
        return self._pools.get(name) or self._pools.setdefault(name, _Limit(name, FORGOTTEN_POOL_SLOTS, True))

    def _limits(self, candidate: C) -> tuple[_Limit[C], ...]:
        dag, pool = self._dag(candidate.dag_name), candidate.pool
        return (dag,) if pool is None else (dag, self._pool(pool))

    def _begin(self, ticket: _Ticket[C]) -> C:
        del self._tickets[ticket.candidate]
        ticket.valid = False
        self._occupy(ticket.candidate, ticket.limits)
        return ticket.candidate

    def _occupy(self, candidate: C, limits: tuple[_Limit[C], ...]) -> None:
        taken = tuple((limit, limit.cost(candidate)) for limit in limits)
        for limit, cost in taken:
            limit.used += cost
        self._running[candidate] = taken

    def _park(self, ticket: _Ticket[C], limit: _Limit[C]) -> None:
        woken_by, ticket.woken_by = ticket.woken_by, None
        ticket.parked_at = limit
        heapq.heappush(limit.parked, ticket)
        if woken_by is not None and woken_by is not limit:
            self._wake(woken_by)  # the room it was woken for is still there

    def _wake(self, limit: _Limit[C]) -> None:
        """Let those parked at a limit try again, as many as it has room for."""
        room = limit.capacity - limit.used
        while (ticket := limit.first_parked()) is not None:
            room -= limit.cost(ticket.candidate)
            if room < 0:
                return
            heapq.heappop(limit.parked)
            ticket.parked_at, ticket.woken_by = None, limit
            heapq.heappush(self._open, ticket)
