"""Runs and their jobs as the engine holds them in memory: the durable records, wired to each other.

Only the engine (and its commands) changes what is here; the views read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from supervisor.core.graph import Gate, Standing, Standings, standings
from supervisor.core.model import ACTIVE, Attempt, Dag, Job, Node, Outcome, Run, State


class Edge:
    """One need: `downstream` needs `outcome` of an upstream, as a member of one of its groups."""

    __slots__ = ("downstream", "group", "outcome", "standing")

    def __init__(self, downstream: LiveNode, group: Gate, outcome: Outcome, upstream: LiveNode) -> None:
        self.downstream = downstream
        self.group = group
        self.outcome = outcome
        self.standing = upstream.means[outcome]
        group.add(self.standing)

    def follow(self, means: Standings) -> bool:
        """Take in what the upstream means now; True if the standing of all the downstream's needs changed with it."""
        new = means[self.outcome]
        if new is self.standing:
            return False
        group, needs = self.group, self.downstream.needs
        group_before, needs_before = group.best, needs.worst
        group.change(self.standing, new)
        self.standing = new
        needs.change(group_before, group.best)
        return needs.worst is not needs_before


class LiveNode:
    """One job within one run. Compared and hashed by identity."""

    __slots__ = ("attempt", "downstream", "job", "needs", "node", "pid", "run")

    def __init__(self, run: LiveRun, job: Job, node: Node, attempt: Attempt | None) -> None:
        self.run = run
        self.job = job
        self.node = node
        self.attempt = attempt  # the newest
        self.pid: int | None = None  # of the main process, while it runs
        self.needs = Gate()
        self.downstream: list[Edge] = []

    @property
    def state(self) -> State:
        return self.node.state

    @property
    def means(self) -> Standings:
        """What its state means to those that need it."""
        return standings(self.node.state, self.node.by_operator)

    @property
    def standing(self) -> Standing:
        """How its needs stand; a forced job has none."""
        return Standing.MET if self.node.forced else self.needs.worst

    @property
    def awaits_report(self) -> bool:
        """Its processes have ended; only someone's report is missing."""
        return self.state in ACTIVE and self.attempt is not None and self.attempt.finished_at is not None

    def open_groups(self) -> Iterator[tuple[Standing, list[LiveNode], str]]:
        """Groups of needs that are not met: how each stands, its upstreams, and how it is written."""
        for members in self.job.needs:
            upstreams = [self.run.nodes[need.job] for need in members]
            pairs = zip(members, upstreams, strict=True)
            best = min(up.means[need.outcome] for need, up in pairs)
            if best is not Standing.MET:
                yield best, upstreams, " or ".join(map(str, members))

    def obstacle(self) -> str:
        """What stands in the way of its needs, for people: `needs extract, which is failed`."""
        worst = self.needs.worst
        for standing, upstreams, written in self.open_groups():
            if standing is worst:
                found = " and ".join(sorted({up.state for up in upstreams}))
                return f"needs {written}, {'which is' if len(upstreams) == 1 else 'which are'} {found}"
        return ""

    # What the ready queue asks.
    @property
    def priority(self) -> int:
        return self.job.priority

    @property
    def dag_name(self) -> str:
        return self.job.dag

    @property
    def pool(self) -> str | None:
        return self.job.pool

    @property
    def slots(self) -> int:
        return self.job.slots

    @property
    def forced(self) -> bool:
        return self.node.forced


class LiveRun:
    """One run with its jobs in dependency order, and how many of them are in each state."""

    __slots__ = ("counts", "nodes", "run", "shown_state")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.nodes: dict[str, LiveNode] = {}
        self.counts = dict.fromkeys(State, 0)
        self.shown_state: State | None = None  # as last told to the journal

    def add(self, nodes: Iterable[tuple[Node, Attempt | None]]) -> list[LiveNode]:
        """Take in jobs of the run's dag and wire their needs. All their upstreams are here already or among them."""
        given = {node.job: (node, attempt) for node, attempt in nodes}
        added: list[LiveNode] = []
        in_order: dict[str, LiveNode] = {}
        for job in self.run.dag.jobs:
            if job.name in given:
                live = LiveNode(self, job, *given[job.name])
                self.counts[live.state] += 1
                added.append(live)
            else:
                live = self.nodes[job.name]
            in_order[job.name] = live
        self.nodes = in_order
        for live in added:
            self._wire(live)
        return added

    def _wire(self, live: LiveNode) -> None:
        for members in live.job.needs:
            group = Gate()
            for need in members:
                upstream = self.nodes[need.job]
                upstream.downstream.append(Edge(live, group, need.outcome, upstream))
            live.needs.add(group.best)

    @property
    def dag(self) -> Dag:
        return self.run.dag

    @property
    def active(self) -> int:
        """Jobs with an attempt under way."""
        return self.counts[State.RUNNING] + self.counts[State.STOPPING]

    @property
    def state(self) -> State:
        """`running`, else the worst of its jobs (CONTRACT 3)."""
        counts = self.counts
        if self.active or counts[State.QUEUED]:
            return State.RUNNING
        if counts[State.FAILED] or counts[State.LOST] or counts[State.BLOCKED]:
            return State.FAILED
        return State.STOPPED if counts[State.STOPPED] else State.SUCCESS

    @property
    def unfinished(self) -> bool:
        return self.state is State.RUNNING
