"""The queue of jobs that could start now but for slots: priority, then first come, first served.

Three kinds of limits: jobs at once over all, jobs at once in a dag, slots of a pool. A job that
meets a full limit is parked with that limit and looked at again when the limit gets room, so a
start or an end costs O(log n) however many wait. Within one limit nobody is overtaken by someone
who came later, so a job that needs many slots is not starved by small ones.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Protocol

#: A limit's identity: ("dag", name) or ("pool", name).
LimitKey = tuple[str, str]
#: Slots of a pool that is no longer configured, but that an older run still names.
FORGOTTEN_POOL_SLOTS = 1
NO_LIMIT = 2**62


class Candidate(Protocol):
    """What the queue must know of a job."""

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


class _Ticket:
    """A candidate's place. `parked_at`: the limit it waits for; `woken_by`: the one that let it try again."""

    __slots__ = ("candidate", "express", "key", "parked_at", "valid", "woken_by")

    def __init__(self, candidate: Candidate, order: int) -> None:
        self.candidate = candidate
        self.key = (-candidate.priority, order)
        self.express = candidate.forced
        self.valid = True
        self.parked_at: LimitKey | None = None
        self.woken_by: LimitKey | None = None

    def __lt__(self, other: _Ticket) -> bool:
        return self.key < other.key


class ReadyQueue:
    """Who is next. `add` and `discard` as jobs become ready or not, `take` to start, `release` at the end."""

    def __init__(self) -> None:
        self._max_running = 0
        self._capacity: dict[LimitKey, int] = {}
        self._used: dict[LimitKey, int] = defaultdict(int)
        self._running = 0
        self._held_slots: dict[Candidate, list[tuple[LimitKey, int]]] = {}
        self._open: list[_Ticket] = []
        self._express: deque[_Ticket] = deque()
        self._parked: dict[LimitKey, list[_Ticket]] = {}
        self._tickets: dict[Candidate, _Ticket] = {}
        self._order = 0

    def configure(self, max_running: int, dag_limits: Mapping[str, int], pools: Mapping[str, int]) -> None:
        """Set the limits (0 = none, for all but pools). Who waits is looked at again."""
        self._max_running = max_running
        self._capacity = {("dag", name): limit for name, limit in dag_limits.items() if limit}
        self._capacity |= {("pool", name): slots for name, slots in pools.items()}
        for limit in list(self._parked):
            for ticket in self._parked.pop(limit):
                ticket.parked_at = None
                heapq.heappush(self._open, ticket)

    def __contains__(self, candidate: Candidate) -> bool:
        return candidate in self._tickets

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._tickets)

    def add(self, candidate: Candidate) -> None:
        """It may start. A candidate that is already here keeps its place."""
        known = self._tickets.get(candidate)
        if known is not None:
            if known.express or not candidate.forced:
                return
            self.discard(candidate)
        self._order += 1
        ticket = self._tickets[candidate] = _Ticket(candidate, self._order)
        if ticket.express:
            self._express.append(ticket)
        else:
            heapq.heappush(self._open, ticket)

    def discard(self, candidate: Candidate) -> None:
        """It may no longer start. Unknown ones are no error."""
        ticket = self._tickets.pop(candidate, None)
        if ticket is None:
            return
        ticket.valid = False
        self._wake(ticket.parked_at)
        self._wake(ticket.woken_by)

    def take(self) -> Candidate | None:
        """The next to start, or None. Its slots are taken until `release`."""
        while self._express:
            ticket = self._express.popleft()
            if ticket.valid:
                return self._begin(ticket)
        while self._open and not (self._max_running and self._running >= self._max_running):
            ticket = heapq.heappop(self._open)
            if not ticket.valid:
                continue
            full = self._full_limit(ticket)
            if full is None:
                return self._begin(ticket)
            self._park(ticket, full)
        return None

    def occupy(self, candidate: Candidate) -> None:
        """Take slots without asking, for what is forced or already runs."""
        held = [(limit, self._cost(limit, candidate)) for limit in self._limits(candidate)]
        for limit, cost in held:
            self._used[limit] += cost
        self._held_slots[candidate] = held
        self._running += 1

    def release(self, candidate: Candidate) -> None:
        """Give back what it took."""
        held = self._held_slots.pop(candidate)
        self._running -= 1
        for limit, cost in held:
            self._used[limit] -= cost
            if not self._used[limit]:
                del self._used[limit]
            self._wake(limit)

    def waits_for(self, candidate: Candidate) -> str | None:
        """The limit in its way, for people: `pool warehouse (4)`; None if it is not in the queue."""
        ticket = self._tickets.get(candidate)
        if ticket is None:
            return None
        full = self._full_limit(ticket) or ticket.parked_at
        if full is not None:
            kind, name = full
            unit = "slots" if kind == "pool" else "at once"
            return f"{kind} {name} ({self._limit_of(full)} {unit})"
        if self._max_running and self._running >= self._max_running:
            return f"max_running ({self._max_running} at once)"
        return "its turn"

    # ---- inside ----

    def _begin(self, ticket: _Ticket) -> Candidate:
        candidate = ticket.candidate
        del self._tickets[candidate]
        ticket.valid = False
        self.occupy(candidate)
        return candidate

    def _limits(self, candidate: Candidate) -> Iterator[LimitKey]:
        yield ("dag", candidate.dag_name)
        if candidate.pool is not None:
            yield ("pool", candidate.pool)

    def _limit_of(self, limit: LimitKey) -> int:
        return self._capacity.get(limit, NO_LIMIT if limit[0] == "dag" else FORGOTTEN_POOL_SLOTS)

    def _cost(self, limit: LimitKey, candidate: Candidate) -> int:
        # A job that wants more slots than a (meanwhile smaller) pool has may run when the pool is empty.
        return min(candidate.slots, self._limit_of(limit)) if limit[0] == "pool" else 1

    def _fits(self, limit: LimitKey, candidate: Candidate) -> bool:
        return self._used.get(limit, 0) + self._cost(limit, candidate) <= self._limit_of(limit)

    def _full_limit(self, ticket: _Ticket) -> LimitKey | None:
        for limit in self._limits(ticket.candidate):
            if not self._fits(limit, ticket.candidate):
                return limit
            earlier = self._first_parked(limit)
            if earlier is not None and earlier < ticket:
                return limit
        return None

    def _park(self, ticket: _Ticket, limit: LimitKey) -> None:
        woken_by, ticket.woken_by = ticket.woken_by, None
        ticket.parked_at = limit
        heapq.heappush(self._parked.setdefault(limit, []), ticket)
        if woken_by is not None and woken_by != limit:
            self._wake(woken_by)  # the room it was woken for is still there

    def _first_parked(self, limit: LimitKey) -> _Ticket | None:
        parked = self._parked.get(limit)
        while parked and not parked[0].valid:
            heapq.heappop(parked)
        if not parked:
            self._parked.pop(limit, None)
            return None
        return parked[0]

    def _wake(self, limit: LimitKey | None) -> None:
        """Let those parked at a limit try again, as many as it has room for."""
        if limit is None:
            return
        room = self._limit_of(limit) - self._used.get(limit, 0)
        while (ticket := self._first_parked(limit)) is not None:
            room -= self._cost(limit, ticket.candidate)
            if room < 0:
                return
            heapq.heappop(self._parked[limit])
            ticket.parked_at, ticket.woken_by = None, limit
            heapq.heappush(self._open, ticket)
