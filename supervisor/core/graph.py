"""Who waits for whom: dependency order, cycles, and how each need stands.

A job's needs are groups: all groups must be met, any member meets its group. With the values of
`Standing` ordered from best to worst, a group stands as the best of its members and a job as the
worst of its groups. Both are kept as counters, so a change of one upstream costs one step for each
job that needs it, however many others those jobs need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from graphlib import CycleError, TopologicalSorter

from supervisor.core.model import Outcome, State

__all__ = ["CycleError", "Gate", "Standing", "dependency_order", "standing_of"]


class Standing(IntEnum):
    """How a need, a group of needs or all needs of a job stand."""

    MET = 0
    PENDING = 1  # may still be met, nobody has to do anything
    BLOCKED = 2  # may still be met if someone acts
    IMPOSSIBLE = 3  # can no longer be met


_MET, _PENDING, _BLOCKED, _IMPOSSIBLE = Standing

#: How a need for an outcome stands when its upstream is in a state (CONTRACT 3). One rule is not in
#: the table: skipped by an operator meets a need for success.
_STANDINGS: dict[State, dict[Outcome, Standing]] = {
    state: dict(zip(Outcome, row, strict=True))
    for state, row in {
        #                 :success     :failed      :done
        State.STOPPED: (_BLOCKED, _BLOCKED, _BLOCKED),
        State.QUEUED: (_PENDING, _PENDING, _PENDING),
        State.BLOCKED: (_BLOCKED, _BLOCKED, _BLOCKED),
        State.RUNNING: (_PENDING, _PENDING, _PENDING),
        State.STOPPING: (_PENDING, _PENDING, _PENDING),
        State.SUCCESS: (_MET, _IMPOSSIBLE, _MET),
        State.FAILED: (_BLOCKED, _MET, _MET),
        State.LOST: (_BLOCKED, _MET, _MET),
        State.SKIPPED: (_IMPOSSIBLE, _IMPOSSIBLE, _MET),
    }.items()
}


def standing_of(outcome: Outcome, upstream: State, by_operator: bool) -> Standing:
    """How a need for `outcome` stands; `by_operator`: the upstream's state was set by skip or mark."""
    if by_operator and upstream is State.SKIPPED and outcome is Outcome.SUCCESS:
        return Standing.MET
    return _STANDINGS[upstream][outcome]


class Gate:
    """Counts the standings of the parts of something, and knows the best and the worst of them."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts = [0, 0, 0, 0]

    def add(self, part: Standing) -> None:
        self._counts[part] += 1

    def change(self, old: Standing, new: Standing) -> None:
        self._counts[old] -= 1
        self._counts[new] += 1

    @property
    def best(self) -> Standing:
        """Of an any-of group; it has at least one member."""
        return next(standing for standing in Standing if self._counts[standing])

    @property
    def worst(self) -> Standing:
        """Of an all-of list; an empty one is met."""
        counts = self._counts
        return (
            _IMPOSSIBLE
            if counts[_IMPOSSIBLE]
            else _BLOCKED
            if counts[_BLOCKED]
            else _PENDING
            if counts[_PENDING]
            else _MET
        )


def dependency_order(upstreams: Mapping[str, Iterable[str]]) -> list[str]:
    """Names, upstreams first, otherwise in the order of `upstreams`.

    `upstreams`: name -> the names it needs; all of them must be keys.
    Raises graphlib.CycleError, whose args[1] is the cycle as a list of names, first = last.
    """
    sorter = TopologicalSorter(upstreams)
    sorter.prepare()
    position = {name: index for index, name in enumerate(upstreams)}
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=position.__getitem__)
        order.extend(ready)
        sorter.done(*ready)
    return order
