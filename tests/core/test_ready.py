"""The queue of ready jobs against a naive model that looks at everyone, every time; and bugs planted in it.

A failure names its seed. More of them: `JOBD_SIM_SEEDS=20000 pytest tests/core/test_ready.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest

from supervisor.core import ready
from supervisor.core.ready import ReadyQueue
from tests.core.hunting import Mutation, Patch, hunt

SEEDS = int(os.environ.get("JOBD_SIM_SEEDS", "400"))
STEPS = 60
#: A pool that is not configured, but that someone still names, has this many slots.
FORGOTTEN_POOL_SLOTS = 1


@dataclass(eq=False)
class Candidate:
    priority: int
    dag_name: str
    pool: str | None
    slots: int
    forced: bool = False


class Model:
    """Whoever waits, in order; whoever runs; and what both mean for the limits."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.waiting: list[Candidate] = []  # in order of arrival
        self.held: list[Candidate] = []
        self.running: list[Candidate] = []
        self.queue: ReadyQueue[Candidate] = ReadyQueue()
        self.configure()
        usual: dict[Callable[[], None], float] = {
            self.add: 4,
            self.add_again: 1,
            self.end: 3,
            self.discard: 1,
            self.release: 1,
            self.force: 0.5,
            self.force_and_discard: 0.2,
            self.configure: 0.5,
            self.begin_anew: 0.3,
        }
        self.temper = {action: weight * self.random.choice([0.1, 1, 3]) for action, weight in usual.items()}

    def step(self) -> None:
        [action] = self.random.choices(list(self.temper), list(self.temper.values()))
        action()
        if self.random.random() < 0.7:
            self.take_all()
        self.check_who_waits()

    # ---- the limits ------------------------------------------------------------------------------

    def configure(self) -> None:
        choose = self.random
        self.max_running = choose.choice([0, 0, 3, 4])
        self.dags = {dag: choose.choice([0, 0, 1, 2]) for dag in ("north", "south")}
        self.pools = {pool: choose.randint(1, 4) for pool in ("db", "web") if choose.random() < 0.8}
        self.queue.configure(self.max_running, self.dags, self.pools)

    def begin_anew(self) -> None:
        """The daemon was restarted: what runs has its slots without being asked, the others come in once more."""
        self.queue = ReadyQueue()
        self.queue.configure(self.max_running, self.dags, self.pools)
        for candidate in self.running:
            self.queue.occupy(candidate)
        for candidate in self.waiting:
            self.queue.add(candidate)

    # ---- who comes and goes ----------------------------------------------------------------------

    def add(self) -> None:
        choose = self.random
        candidate = Candidate(
            priority=choose.choice([0, 0, 0, 1, -1]),
            dag_name=choose.choice(["north", "south"]),
            pool=choose.choice(["db", "db", "web", None]),
            slots=choose.randint(1, 3),
        )
        self._arrive(candidate)

    def add_again(self) -> None:
        """Whoever is here keeps the place."""
        for candidate in self.waiting[:1]:
            self.queue.add(candidate)

    def discard(self) -> None:
        """It is stopped, or held until it is released."""
        if self.waiting:
            candidate = self.waiting.pop(self.random.randrange(len(self.waiting)))
            self.queue.discard(candidate)
            self.queue.discard(candidate)
            if self.random.random() < 0.5:
                self.held.append(candidate)

    def release(self) -> None:
        """Whoever was held comes last among its equals."""
        if self.held:
            self._arrive(self.held.pop(0))

    def force(self) -> None:
        """Forced ones start at once, whatever is full, in the order in which they were forced."""
        chosen = self.random.sample(self.waiting, min(len(self.waiting), self.random.randint(1, 3)))
        for candidate in chosen:
            candidate.forced = True
            self.queue.add(candidate)
        for candidate in chosen:
            assert self.queue.take() is candidate, "a forced one waits"
            self._start(candidate)

    def force_and_discard(self) -> None:
        for candidate in self.waiting[:1]:
            candidate.forced = True
            self.queue.add(candidate)
            self.queue.discard(candidate)
            self.waiting.remove(candidate)

    def end(self) -> None:
        if self.running:
            self.queue.release(self.running.pop(self.random.randrange(len(self.running))))

    def _arrive(self, candidate: Candidate) -> None:
        self.waiting.append(candidate)
        self.queue.add(candidate)

    def _start(self, candidate: Candidate) -> None:
        self.waiting.remove(candidate)
        self.running.append(candidate)

    # ---- who starts ------------------------------------------------------------------------------

    def take_all(self) -> None:
        while (candidate := self.queue.take()) is not None:
            full = self.full(candidate)
            assert not full, f"it starts over {full}"
            for earlier in self._earlier(candidate):
                assert not self._are_mates(earlier, candidate) or "dag" in self.full(earlier), "it overtakes in a pool"
                assert self._is_refused(earlier), "an earlier one could have started"
            self._start(candidate)
        for candidate in self.waiting:
            assert self._is_refused(candidate), "it could start"

    def check_who_waits(self) -> None:
        assert set(self.queue) == set(self.waiting), "others wait than should"
        for candidate in self.waiting:
            assert self.queue.waits_for(candidate), "it does not know what it waits for"
        for candidate in (*self.running, *self.held):
            assert candidate not in self.queue
            assert self.queue.waits_for(candidate) is None

    # ---- the rules, naively ----------------------------------------------------------------------

    def _earlier(self, candidate: Candidate) -> list[Candidate]:
        """Those who wait and come before it: of a higher priority, or of the same and longer here."""
        place = self.waiting.index(candidate)
        return [
            each for index, each in enumerate(self.waiting) if (-each.priority, index) < (-candidate.priority, place)
        ]

    def full(self, candidate: Candidate) -> set[str]:
        """The limits that have no room for it."""
        full = set()
        if 0 < self.max_running <= len(self.running):
            full.add("max_running")
        if 0 < self.dags[candidate.dag_name] <= sum(each.dag_name == candidate.dag_name for each in self.running):
            full.add("dag")
        if candidate.pool is not None:
            slots = self.pools.get(candidate.pool, FORGOTTEN_POOL_SLOTS)
            used = sum(min(each.slots, slots) for each in self.running if each.pool == candidate.pool)
            if used + min(candidate.slots, slots) > slots:
                full.add("pool")
        return full

    def _are_mates(self, one: Candidate, other: Candidate) -> bool:
        return one.pool is not None and one.pool == other.pool

    def _is_refused(self, candidate: Candidate) -> bool:
        """It does not fit, or someone who came earlier waits for slots of the same pool."""
        mates = [each for each in self._earlier(candidate) if self._are_mates(each, candidate)]
        return bool(self.full(candidate)) or any("pool" in self.full(each) for each in mates)


def live(seed: int) -> None:
    model = Model(seed)
    for _ in range(STEPS):
        model.step()
    model.take_all()


def test_the_right_one_starts_whoever_comes_and_goes() -> None:
    for seed in range(SEEDS):
        try:
            live(seed)
        except Exception as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")


# ---- planted bugs --------------------------------------------------------------------------------------


def nobody_is_woken(patch: Patch) -> None:
    patch.setattr(ReadyQueue, "_wake", lambda _queue, _limit: None)


def small_ones_overtake_in_a_pool(patch: Patch) -> None:
    patch.setattr(ready._Limit, "refuses", lambda limit, it: limit.used + limit.cost(it.candidate) > limit.capacity)


def what_runs_already_takes_no_slots(patch: Patch) -> None:
    patch.setattr(ReadyQueue, "occupy", lambda queue, candidate: queue._running.setdefault(candidate, ()))


def who_wants_more_than_there_is_never_starts(patch: Patch) -> None:
    patch.setattr(ready._Limit, "cost", lambda limit, candidate: candidate.slots if limit.in_slots else 1)


def those_behind_one_that_leaves_are_not_woken(patch: Patch) -> None:
    discard = ReadyQueue.discard

    def discard_quietly(queue: ReadyQueue[Candidate], candidate: Candidate) -> None:
        ticket = queue._tickets.get(candidate)
        if ticket is not None:
            ticket.parked_at = ticket.woken_by = None
        discard(queue, candidate)

    patch.setattr(ReadyQueue, "discard", discard_quietly)


def room_that_cannot_be_used_is_not_passed_on(patch: Patch) -> None:
    park = ReadyQueue._park

    def park_quietly(queue: ReadyQueue[Candidate], ticket: ready._Ticket[Candidate], limit: object) -> None:
        ticket.woken_by = None
        park(queue, ticket, limit)  # type: ignore[arg-type]

    patch.setattr(ReadyQueue, "_park", park_quietly)


def max_running_is_ignored(patch: Patch) -> None:
    patch.setattr(ReadyQueue, "_is_full", property(lambda _queue: False))


def adding_again_loses_the_place(patch: Patch) -> None:
    add = ReadyQueue.add

    def add_anew(queue: ReadyQueue[Candidate], candidate: Candidate) -> None:
        queue.discard(candidate)
        add(queue, candidate)

    patch.setattr(ReadyQueue, "add", add_anew)


def priorities_are_ignored(patch: Patch) -> None:
    patch.setattr(ready._Ticket, "__lt__", lambda one, other: one.place[1] < other.place[1])


def a_forgotten_pool_has_no_limit(patch: Patch) -> None:
    patch.setattr(ready, "FORGOTTEN_POOL_SLOTS", 100)


def a_reload_forgets_what_is_used(patch: Patch) -> None:
    configure = ReadyQueue.configure

    def configure_badly(queue: ReadyQueue[Candidate], *limits: object) -> None:
        running, queue._running = queue._running, {}
        configure(queue, *limits)  # type: ignore[arg-type]
        queue._running = running

    patch.setattr(ReadyQueue, "configure", configure_badly)


MUTATIONS: list[tuple[Mutation, str]] = [
    (nobody_is_woken, "could"),
    (small_ones_overtake_in_a_pool, "overtakes"),
    (what_runs_already_takes_no_slots, "starts over"),
    (who_wants_more_than_there_is_never_starts, "could"),
    (those_behind_one_that_leaves_are_not_woken, "could"),
    (room_that_cannot_be_used_is_not_passed_on, "could"),
    (max_running_is_ignored, "starts over"),
    (adding_again_loses_the_place, "overtakes|could have"),
    (priorities_are_ignored, "overtakes|could have"),
    (a_forgotten_pool_has_no_limit, "starts over"),
    (a_reload_forgets_what_is_used, "starts over|could"),
]


@pytest.mark.parametrize(("mutation", "words"), MUTATIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_bug_is_noticed(mutation: Mutation, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hunt(mutation, words, live, monkeypatch)
