"""Who waits for whom: dependency order and cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

__all__ = ["CycleError", "dependency_order"]


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
