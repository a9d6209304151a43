"""The queue of ready jobs against a naive model that looks at everyone, every time."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supervisor.core.ready import ReadyQueue

DAGS, POOL = ("north", "south"), "db"


@dataclass(eq=False)
class Candidate:
    priority: int
    dag_name: str
    pool: str | None
    slots: int
    forced: bool = False


limits = st.sampled_from([0, 0, 0, 2, 3])
pool_slots = st.integers(2, 4)
candidates = st.builds(
    Candidate,
    priority=st.sampled_from([0, 0, 0, 1]),
    dag_name=st.sampled_from(DAGS),
    pool=st.sampled_from([POOL, POOL, None]),
    slots=st.integers(1, 3),
)


class QueueMachine(RuleBasedStateMachine):
    """Whoever waits, in order; whoever runs; and what both mean for the limits."""

    @initialize(max_running=limits, dags=st.tuples(limits, limits), slots=pool_slots)
    def begin(self, max_running: int, dags: tuple[int, int], slots: int) -> None:
        self.queue: ReadyQueue[Candidate] = ReadyQueue()
        self.waiting: list[Candidate] = []  # in order of arrival
        self.running: list[Candidate] = []
        self.configure(max_running, dags, slots)

    @rule(max_running=limits, dags=st.tuples(limits, limits), slots=pool_slots)
    def configure(self, max_running: int, dags: tuple[int, int], slots: int) -> None:
        self.max_running = max_running
        self.dags, self.slots = dict(zip(DAGS, dags, strict=True)), slots
        self.queue.configure(max_running, self.dags, {POOL: slots})

    @rule(candidate=candidates)
    def add(self, candidate: Candidate) -> None:
        self.waiting.append(candidate)
        self.queue.add(candidate)
        self.queue.add(candidate)  # once more changes nothing

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        candidate = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(candidate)
        self.queue.discard(candidate)
        self.queue.discard(candidate)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def force(self, data: st.DataObject) -> None:
        candidate = data.draw(st.sampled_from(self.waiting))
        candidate.forced = True
        self.queue.add(candidate)
        assert self.queue.take() is candidate
        self._started(candidate)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        candidate = data.draw(st.sampled_from(self.running))
        self.running.remove(candidate)
        self.queue.release(candidate)

    @rule()
    def take_all(self) -> None:
        while (candidate := self.queue.take()) is not None:
            assert not self._full(candidate), "it starts over a limit"
            for earlier in self._earlier(candidate):
                behind = earlier.pool and candidate.pool
                assert not behind or "dag" in self._full(earlier), "it overtakes in a pool"
                assert self._refused(earlier), "an earlier one could have started"
            self._started(candidate)
        for candidate in self.waiting:
            assert self._refused(candidate), "it could start"

    @invariant()
    def knows_who_waits(self) -> None:
        assert set(self.queue) == set(self.waiting)
        for candidate in self.waiting:
            assert candidate in self.queue
            assert self.queue.waits_for(candidate)
        for candidate in self.running:
            assert self.queue.waits_for(candidate) is None

    # ---- the naive model ----

    def _started(self, candidate: Candidate) -> None:
        self.waiting.remove(candidate)
        self.running.append(candidate)

    def _earlier(self, candidate: Candidate) -> list[Candidate]:
        """Those who wait and come before it: of a higher priority, or of the same and longer here."""
        place = self.waiting.index(candidate)
        return [
            each for index, each in enumerate(self.waiting) if (-each.priority, index) < (-candidate.priority, place)
        ]

    def _full(self, candidate: Candidate) -> set[str]:
        """The limits that have no room for it."""
        full = set()
        if 0 < self.max_running <= len(self.running):
            full.add("max_running")
        if 0 < self.dags[candidate.dag_name] <= sum(each.dag_name == candidate.dag_name for each in self.running):
            full.add("dag")
        used = sum(min(each.slots, self.slots) for each in self.running if each.pool)
        if candidate.pool and used + min(candidate.slots, self.slots) > self.slots:
            full.add("pool")
        return full

    def _refused(self, candidate: Candidate) -> bool:
        """It does not fit, or someone who came earlier waits for slots of the same pool."""
        mates = [each for each in self._earlier(candidate) if candidate.pool and each.pool]
        return bool(self._full(candidate)) or any("pool" in self._full(each) for each in mates)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
