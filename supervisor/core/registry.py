"""Which runs are in memory, and how they are named and found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import Dag


class Registry:
    """The runs in memory: the newest of every dag, those that are unfinished, and older ones just looked at."""

    def __init__(self, is_taken: Callable[[str], bool]) -> None:
        self._is_taken = is_taken  # whether a run of this name was ever recorded
        self._by_name: dict[str, LiveRun] = {}
        self._by_id: dict[int, LiveRun] = {}
        self._by_dag: dict[str, list[LiveRun]] = {}  # oldest first
        self._crowded: set[str] = set()  # dags with more than one run in memory

    def add(self, live_run: LiveRun) -> None:
        run = live_run.run
        if run.id in self._by_id:
            raise ValueError(f"run {run.name} is in memory already")
        self._by_name[run.name] = self._by_id[run.id] = live_run
        runs = self._by_dag.setdefault(run.dag.name, [])
        runs.append(live_run)
        runs.sort(key=lambda each: each.run.id)
        if len(runs) > 1:
            self._crowded.add(run.dag.name)

    def __iter__(self) -> Iterator[LiveRun]:
        return iter(list(self._by_id.values()))

    def by_name(self, name: str) -> LiveRun | None:
        return self._by_name.get(name)

    def by_id(self, run_id: int | None) -> LiveRun | None:
        return self._by_id.get(run_id) if run_id is not None else None

    def of_dag(self, dag: str) -> list[LiveRun]:
        """Runs of a dag that are in memory, oldest first."""
        return self._by_dag.get(dag, [])

    def newest(self, dag: str) -> LiveRun | None:
        runs = self._by_dag.get(dag)
        return runs[-1] if runs else None

    def waiting_for(self, ended: LiveRun) -> list[LiveRun]:
        """Runs that may start nothing until `ended` has nothing under way."""
        return [each for each in self.of_dag(ended.dag.name) if each.run.after == ended.run.id]

    def nodes_of(self, name: str) -> Iterator[LiveNode]:
        """The jobs that a hold on `name`, a job's or a dag's, is about, in all runs."""
        for live_run in self:
            if live_run.dag.name == name:
                yield from live_run.nodes.values()
            elif name in live_run.nodes:
                yield live_run.nodes[name]

    def free_name(self, dag: Dag, at: float, date: str | None = None) -> str:
        """A name for a run that someone begins at `at` (epoch seconds): DAG@ its start with seconds, in the dag's zone.

        `date` (YYYY-MM-DD) stands in for the day. A name that is taken gets `.2`, `.3` … behind it.
        """
        local = datetime.fromtimestamp(at, UTC).astimezone(dag.zone)
        name = free = f"{dag.name}@{date or local.date().isoformat()}T{local:%H:%M:%S}"
        count = 1
        while free in self._by_name or self._is_taken(free):
            count += 1
            free = f"{name}.{count}"
        return free

    def forget_finished(self) -> None:
        """Drop runs that have ended and are not the newest of their dag."""
        for dag in list(self._crowded):
            *older, newest = self._by_dag[dag]
            self._by_dag[dag] = [*(each for each in older if each.unfinished), newest]
            for live_run in older:
                if not live_run.unfinished:
                    del self._by_name[live_run.run.name], self._by_id[live_run.run.id]
            if len(self._by_dag[dag]) == 1:
                self._crowded.discard(dag)
