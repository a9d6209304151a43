"""What the names in a command stand for: a dag's run, or jobs in it.

Unknown names are refused, with the nearest known one as a hint. Called by the planners.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supervisor.core.events import Refusal
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.plan import RefusedError, wrong_params
from supervisor.core.queries import unknown_name

if TYPE_CHECKING:
    from supervisor.core.engine import Engine


@dataclass(slots=True)
class Target:
    """Names resolved to one dag: its run (if there is one) and the jobs meant; `names` empty = all of it."""

    dag: str
    run: LiveRun | None
    names: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not self.names

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return self.dag if self.whole else ", ".join(self.names)

    def nodes(self) -> list[LiveNode]:
        """The jobs meant that are in the run, in dependency order if it is all of it."""
        if self.run is None:
            return []
        return [self.run.nodes[name] for name in self.names or self.run.nodes]


def resolve(engine: Engine, names: tuple[str, ...], run_name: str | None) -> list[Target]:
    """Names to targets, one a dag, in the order given. A dag's name wins over its jobs' names; none = every dag."""
    chosen: LiveRun | None = None
    if run_name is not None:
        chosen = engine.registry.by_name(run_name)
        if chosen is None:
            raise RefusedError(Refusal(4, "unknown_name", f"no run {run_name!r}", "jobctl history lists the runs"))
        names = names or (chosen.dag.name,)
    jobs: dict[str, dict[str, None]] = {}
    whole: set[str] = set()
    for name in names or _every_dag(engine):
        dag = _dag_of(engine, name, chosen)
        members = jobs.setdefault(dag, {})
        if dag == name:
            whole.add(dag)
        else:
            members[name] = None
    return [
        Target(dag, chosen or engine.registry.newest(dag), () if dag in whole else tuple(members))
        for dag, members in jobs.items()
    ]


def required(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, each once. Refuses none at all: that would mean everything."""
    if not names:
        raise wrong_params("which job or dag?", "give at least one name")
    return tuple(dict.fromkeys(names))


def check_known(engine: Engine, names: Iterable[str]) -> None:
    for name in names:
        _dag_of(engine, name, None)


def _every_dag(engine: Engine) -> dict[str, None]:
    """Those of the configuration, and those that it no longer has while a run of them is not finished."""
    leftover = [live_run.dag.name for live_run in engine.registry if live_run.unfinished]
    return dict.fromkeys([*engine.definitions.dags, *leftover])


def _dag_of(engine: Engine, name: str, chosen: LiveRun | None) -> str:
    """The dag that a name stands for or belongs to."""
    if chosen is not None:
        if name == chosen.dag.name or name in chosen.nodes:
            return chosen.dag.name
        raise RefusedError(unknown_name(name, [chosen.dag.name, *chosen.nodes], f" in {chosen.run.name}"))
    if name in engine.definitions.dags or engine.registry.newest(name) is not None:
        return name
    defined_in = engine.job_dags.get(name)
    if defined_in is not None:
        return defined_in
    for live_run in engine.registry:  # a job that the configuration no longer has
        if name in live_run.nodes and engine.registry.newest(live_run.dag.name) is live_run:
            return live_run.dag.name
    raise RefusedError(unknown_name(name, [*engine.definitions.dags, *engine.job_dags]))
