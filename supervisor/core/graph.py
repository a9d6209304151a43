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

__all__ = ["CycleError", "Gate", "Standing", "dependency_order", "standings"]


class Standing(IntEnum):
    """How a need, a group of needs or all needs of a job stand."""

    MET = 0
    PENDING = 1  # may still be met, nobody has to do anything
    BLOCKED = 2  # may still be met if someone acts
    IMPOSSIBLE = 3  # can no longer be met


_MET, _PENDING, _BLOCKED, _IMPOSSIBLE = Standing

#: How a need for each outcome stands.
Standings = Mapping[Outcome, Standing]


def _row(*by_outcome: Standing) -> Standings:
    return dict(zip(Outcome, by_outcome, strict=True))


# What an upstream means to those that need it (CONTRACT 3).
#                            :success     :failed      :done
_GOES_ON = _row(_PENDING, _PENDING, _PENDING)
_STUCK = _row(_BLOCKED, _BLOCKED, _BLOCKED)
_SUCCEEDED = _row(_MET, _IMPOSSIBLE, _MET)
_FAILED = _row(_BLOCKED, _MET, _MET)
_SKIPPED = _row(_IMPOSSIBLE, _IMPOSSIBLE, _MET)
_SKIPPED_BY_OPERATOR = _row(_MET, _IMPOSSIBLE, _MET)

_STANDINGS: dict[State, Standings] = {
    State.STOPPED: _STUCK,
    State.QUEUED: _GOES_ON,
    State.BLOCKED: _STUCK,
    State.RUNNING: _GOES_ON,
    State.STOPPING: _GOES_ON,
    State.SUCCESS: _SUCCEEDED,
    State.FAILED: _FAILED,
    State.LOST: _FAILED,
    State.SKIPPED: _SKIPPED,
}


def standings(upstream: State, by_operator: bool) -> Standings:
    """How needs for each outcome stand; `by_operator`: the upstream's state was set by skip or mark.

    One and the same object if two states mean the same to those downstream: compare with `is`.
    """
    if by_operator and upstream is State.SKIPPED:
        return _SKIPPED_BY_OPERATOR
    return _STANDINGS[upstream]


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
        met, pending, blocked, _ = self._counts
        return _MET if met else _PENDING if pending else _BLOCKED if blocked else _IMPOSSIBLE

    @property
    def worst(self) -> Standing:
        """Of an all-of list; an empty one is met."""
        _, pending, blocked, impossible = self._counts
        return _IMPOSSIBLE if impossible else _BLOCKED if blocked else _PENDING if pending else _MET


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
