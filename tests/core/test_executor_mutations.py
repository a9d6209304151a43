"""An executor that does not keep its word after a crash: the worlds of `crashes` must notice that, too."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from supervisor.core.events import Halt
from tests.core.crashes import survive
from tests.core.hunting import Mutation, Patch, hunt
from tests.core.machine import Hands, Machine, Shim

STEPS = 800


def a_signal_to_what_is_not_found_yet_is_dropped(patch: Patch) -> None:
    signal = Hands.signal

    def signal_but(hands: Hands, attempt_id: int, halt: Halt) -> None:
        if attempt_id not in hands.unsettled:
            signal(hands, attempt_id, halt)

    patch.setattr(Hands, "signal", signal_but)


def no_record_means_not_started_after_a_power_cut_too(patch: Patch) -> None:
    settle = Hands._settle

    def settle_in_good_faith(hands: Hands, attempt_id: int, halt: Halt | None) -> None:
        hands.machine.suspects.clear()
        settle(hands, attempt_id, halt)

    patch.setattr(Hands, "_settle", settle_in_good_faith)


def what_is_given_up_is_not_marked_so(patch: Patch) -> None:
    settle = Hands._settle

    def settle_and_forget(hands: Hands, attempt_id: int, halt: Halt | None) -> None:
        is_new = attempt_id not in hands.machine.records
        settle(hands, attempt_id, halt)
        if is_new:
            hands.machine.records.pop(attempt_id, None)

    def begin_though_left_alone(machine: Machine, attempt_id: int, shim: Shim) -> None:
        shim.life = machine.life
        begin(machine, attempt_id, shim)

    begin = Machine._begin
    patch.setattr(Hands, "_settle", settle_and_forget)
    patch.setattr(Machine, "_begin", begin_though_left_alone)


def a_late_shim_begins_though_it_is_left_alone(patch: Patch) -> None:
    begin = Machine._begin

    def begin_though_left_alone(machine: Machine, attempt_id: int, shim: Shim) -> None:
        shim.life = machine.life
        begin(machine, attempt_id, shim)

    patch.setattr(Machine, "_begin", begin_though_left_alone)


def records_that_nobody_needs_are_left(patch: Patch) -> None:
    def recover(hands: Hands, under_way: Iterable[int]) -> None:
        hands.unsettled = dict.fromkeys(under_way)

    patch.setattr(Hands, "recover", recover)


MUTATIONS: list[tuple[Mutation, str]] = [
    (a_signal_to_what_is_not_found_yet_is_dropped, "was not told to"),
    (no_record_means_not_started_after_a_power_cut_too, "nobody knows of them"),
    (what_is_given_up_is_not_marked_so, "runs without a record|KeyError"),
    (a_late_shim_begins_though_it_is_left_alone, "runs without a record"),
    (records_that_nobody_needs_are_left, "are left"),
]


@pytest.mark.parametrize(("mutation", "words"), MUTATIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_bug_is_noticed(mutation: Mutation, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hunt(mutation, words, lambda seed: survive(seed, STEPS), monkeypatch)
