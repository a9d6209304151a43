"""Dependency order, cycles, and the counting of standings, against naive versions of themselves."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.graph import CycleError, Gate, Standing, dependency_order

NAMES = [f"job{number}" for number in range(12)]
Upstreams = dict[str, list[str]]

#: Any graph over a few names, cycles and self-loops included.
graphs = st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), unique=True, max_size=4)).map(
    lambda graph: {name: [need for need in needs if need in graph] for name, needs in graph.items()}
)
#: Graphs in which a job needs only jobs that come before it in NAMES, in any order of definition.
acyclic = graphs.map(
    lambda graph: {name: [n for n in needs if NAMES.index(n) < NAMES.index(name)] for name, needs in graph.items()}
)
standings = st.lists(st.sampled_from(Standing), min_size=1, max_size=8)


def reaches(graph: Upstreams, start: str, goal: str) -> bool:
    """Whether `start` needs `goal`, at once or by others."""
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name == goal:
            return True
        if name not in seen:
            seen.add(name)
            todo += graph[name]
    return False


@given(acyclic)
def test_every_job_comes_after_all_that_it_needs_and_just_once(graph: Upstreams) -> None:
    order = dependency_order(graph)
    assert sorted(order) == sorted(graph)
    place = {name: index for index, name in enumerate(order)}
    assert all(place[need] < place[name] for name, needs in graph.items() for need in needs)


@given(acyclic)
def test_the_order_is_the_same_each_time_and_that_of_the_definition_where_nothing_else_is_asked(
    graph: Upstreams,
) -> None:
    assert dependency_order(graph) == dependency_order(dict(graph))
    free = [name for name in graph if not graph[name]]
    assert dependency_order(graph)[: len(free)] == free


@given(graphs)
def test_a_graph_is_refused_exactly_if_it_has_a_cycle_and_the_cycle_is_real(graph: Upstreams) -> None:
    has_cycle = any(reaches(graph, name, name) for name in graph)
    try:
        dependency_order(graph)
    except CycleError as error:
        assert has_cycle
        cycle = error.args[1]
        assert cycle[0] == cycle[-1]
        assert all(before in graph[after] for before, after in itertools.pairwise(cycle))
    else:
        assert not has_cycle


@given(standings, st.lists(st.tuples(st.integers(0, 7), st.sampled_from(Standing)), max_size=30))
def test_a_gate_knows_the_best_and_the_worst_after_any_changes(
    parts: list[Standing], changes: list[tuple[int, Standing]]
) -> None:
    gate = Gate()
    for part in parts:
        gate.add(part)
    for index, new in changes:
        index %= len(parts)
        gate.change(parts[index], new)
        parts[index] = new
        assert (gate.best, gate.worst) == (min(parts), max(parts))


def test_no_needs_at_all_are_met() -> None:
    assert Gate().worst is Standing.MET
