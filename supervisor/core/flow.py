"""How jobs move from state to state, and what follows for those that need them.

The one place where a state changes: `move`, along transitions.TRANSITIONS. It passes the change on
to the counters of those downstream at once; `settle` then brings every job that it concerns in line,
until nothing moves any more. Knows nothing of processes or commands; the engine and attempts call it.
"""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.core.graph import Standing
from supervisor.core.ledger import Ledger
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import ACTIVE, AT_REST, WAITING, Hold, State
from supervisor.core.ready import ReadyQueue
from supervisor.core.registry import Registry
from supervisor.core.transitions import BY_OPERATOR, Move, target_of


class Flow:
    def __init__(self, ledger: Ledger, registry: Registry) -> None:
        self._ledger = ledger
        self._registry = registry
        self.ready: ReadyQueue[LiveNode] = ReadyQueue()
        self.holds: dict[str, Hold] = {}
        self.touched: dict[LiveRun, None] = {}  # runs whose state may be another than was told
        self._unsettled: list[LiveNode] = []
        self._gone_quiet: list[LiveRun] = []  # runs whose last attempt under way has ended

    # ---- changes -----------------------------------------------------------------------------

    def move(self, live: LiveNode, move: Move, reason: str = "", by: str | None = None) -> None:
        """Change its state. Raises IllegalMoveError, and then nothing has changed."""
        node, run = live.node, live.run
        source, meant = node.state, live.means
        target = target_of(move, source)
        run.counts[source] -= 1
        run.counts[target] += 1
        node.state, node.reason, node.by_operator = target, reason, move in BY_OPERATOR
        if target in AT_REST:  # whatever was wished has come to its end
            node.forced, node.again, node.retry_at = False, False, None
        self._ledger.save_node(live)
        self._ledger.note_job(target, live, reason, by)
        self.touched[run] = None
        if source in ACTIVE and not run.active:
            self._gone_quiet.append(run)
        means = live.means
        if means is not meant:
            self._unsettled += [edge.downstream for edge in live.downstream if edge.follow(means)]
        if target in WAITING:
            self._unsettled.append(live)
        else:
            self.ready.discard(live)

    def ask(self, live: LiveNode, *, forced: bool = False, by: str | None = None) -> None:
        """It shall run: queue it (once more), with all its retries; `forced` ignores needs, time and slots."""
        node = live.node
        if live.state in WAITING:
            self._ledger.save_node(live)
            self._unsettled.append(live)
        else:
            self.move(live, Move.ASK, by=by)
        node.forced, node.tries, node.retry_at = forced, 0, None

    def place_hold(self, hold: Hold) -> None:
        self.holds[hold.name] = hold
        self.look_at(self._registry.nodes_of(hold.name))

    def lift_hold(self, name: str) -> None:
        del self.holds[name]
        self.look_at(self._registry.nodes_of(name))

    def look_at(self, nodes: Iterable[LiveNode]) -> None:
        """Something outside of these jobs changed (a hold, a gate, the time): see where they stand."""
        self._unsettled += nodes

    # ---- what follows ------------------------------------------------------------------------

    def settle(self) -> None:
        """Bring all jobs that a change concerns in line. In order: who was concerned first is queued first."""
        for quiet in self._gone_quiet:
            for live_run in self._registry.waiting_for(quiet):
                self.open_gate(live_run)
        self._gone_quiet.clear()
        for live in self._unsettled:  # which grows as jobs move
            self._align(live)
        self._unsettled.clear()

    def open_gate(self, live_run: LiveRun) -> None:
        """Nothing is under way any more in the run that this one waited for: it may start."""
        live_run.run.after = None
        self._ledger.save_run(live_run)
        self.look_at(live_run.nodes.values())

    def _align(self, live: LiveNode) -> None:
        """Bring a waiting job in line with how its needs stand, and into or out of the ready queue."""
        if live.state in WAITING:
            standing = live.standing
            if standing is Standing.IMPOSSIBLE:
                self.move(live, Move.RULE_OUT, live.obstacle())
            elif standing is Standing.BLOCKED:
                if live.state is State.QUEUED:
                    self.move(live, Move.BLOCK, live.obstacle())
            elif live.state is State.BLOCKED:
                self.move(live, Move.UNBLOCK)
        if self.may_start(live) and not self.held(live):
            self.ready.add(live)
        else:
            self.ready.discard(live)

    def may_start(self, live: LiveNode) -> bool:
        """Nothing but a hold or a limit is in its way."""
        return (
            live.state is State.QUEUED
            and live.standing is Standing.MET
            and live.node.retry_at is None
            and live.run.run.after is None
        )

    def held(self, live: LiveNode) -> Hold | None:
        """The hold on the job or on its dag, if there is one."""
        return self.holds.get(live.job.name) or self.holds.get(live.job.dag)

    # ---- runs --------------------------------------------------------------------------------

    def tell_runs(self) -> None:
        """Note each run that is in another state than was told last."""
        for live_run in self.touched:
            state = live_run.state
            if state is not live_run.shown_state:
                self._tell(live_run, state)

    def _tell(self, live_run: LiveRun, state: State) -> None:
        run = live_run.run
        is_new, live_run.shown_state = live_run.shown_state is None, state
        if state is State.RUNNING:
            run.finished_at = None
            if not is_new:
                self._ledger.note_run("run_resumed", live_run)
        else:
            if run.finished_at is None:
                run.finished_at = self._ledger.now.wall
            self._ledger.note_run(f"run_{state}", live_run)
        self._ledger.save_run(live_run)
