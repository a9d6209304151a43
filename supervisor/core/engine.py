"""The engine: events in, decisions out. Pure; the only place where the state of a job changes.

`handle` takes one event and the time, moves jobs along `transitions.TRANSITIONS`, and returns what
is to be saved and done. Commands of operators are planned in `planner` with the verbs below.
The daemon restores it from the store, calls it once an event, and asks for its next deadline.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from supervisor.core import planner, transitions
from supervisor.core.events import (
    Booted,
    Configured,
    Decision,
    DeleteAttempt,
    Dropped,
    Ending,
    Event,
    Exited,
    Halt,
    Journal,
    Launch,
    Leave,
    NotStarted,
    Now,
    Refusal,
    Reply,
    Requested,
    SaveAttempt,
    SaveNode,
    SaveRun,
    Signal,
    Started,
    TimeReached,
)
from supervisor.core.graph import Standing
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import (
    ACTIVE,
    WAITING,
    Attempt,
    Dag,
    Definitions,
    Finish,
    Hold,
    JournalEntry,
    Node,
    Run,
    State,
    Trigger,
)
from supervisor.core.ready import ReadyQueue
from supervisor.core.registry import Registry
from supervisor.core.transitions import Move
from supervisor.core.waiters import Waiters

#: After a start that the machine refused (no process, no memory), nothing is started for this long,
#: doubling from the first to the second.
START_PAUSE_MIN_S, START_PAUSE_MAX_S = 0.1, 30.0


@dataclass(slots=True)
class Snapshot:
    """All durable state, or that of some runs. `attempts`: at least the newest of each node."""

    runs: list[Run] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    last_event_id: int = 0
    last_run_id: int = 0
    last_attempt_id: int = 0


class Engine:
    """Runs, their jobs, and the rules. Call `restore` once, then `handle` for each event."""

    def __init__(self, definitions: Definitions, is_taken: Callable[[str], bool] = lambda _run_name: False) -> None:
        self.registry = Registry(is_taken)
        self.holds: dict[str, Hold] = {}
        self.ready = ReadyQueue()
        self._set_definitions(definitions)
        self.waiters = Waiters()
        self.leaving = False  # start nothing more, leave when nothing is under way
        self.last_event_id = 0
        self._last_run_id = 0
        self._last_attempt_id = 0
        self._under_way: dict[int, LiveNode] = {}  # attempt id -> its job
        self._timers: list[tuple[float, int, Callable[[], None]]] = []  # monotonic seconds
        self._timer_count = 0
        self._pause_s = 0.0
        self._paused_until = 0.0
        self.now = Now(0.0, 0.0)
        self._begin_turn()

    def _begin_turn(self) -> None:
        self._decisions: list[Decision] = []
        self._replies: list[Reply] = []
        self._changed_nodes: dict[LiveNode, None] = {}
        self._changed_runs: dict[LiveRun, None] = {}
        self._unsettled: list[LiveNode] = []

    # ---- the door ----------------------------------------------------------------------------

    def restore(self, snapshot: Snapshot, now: Now) -> None:
        """Take in durable state: all of it before the first event, or older runs at any time."""
        self.now = now
        self.last_event_id = max(self.last_event_id, snapshot.last_event_id)
        self._last_run_id = max(self._last_run_id, snapshot.last_run_id)
        self._last_attempt_id = max(self._last_attempt_id, snapshot.last_attempt_id)
        self.holds |= {hold.name: hold for hold in snapshot.holds}
        attempts = {attempt.id: attempt for attempt in snapshot.attempts}
        nodes: dict[int, list[tuple[Node, Attempt | None]]] = {}
        for node in snapshot.nodes:
            attempt = attempts.get(node.attempt_id) if node.attempt_id else None
            nodes.setdefault(node.run_id, []).append((node, attempt))
        restored = [LiveRun(run) for run in sorted(snapshot.runs, key=lambda run: run.id)]
        for live_run in restored:
            live_run.add(nodes.get(live_run.run.id, []))
            live_run.shown_state = live_run.state
            self.registry.add(live_run)
        for live_run in restored:
            for live in live_run.nodes.values():
                self._resume(live)
        for live_run in restored:
            gate = self.registry.by_id(live_run.run.after)
            if gate is None or not gate.active:
                live_run.run.after = None

    def handle(self, event: Event, now: Now) -> list[Decision]:
        """Take in one event; what is to be saved and done comes back, in order, replies last."""
        self.now = now
        self._begin_turn()
        match event:
            case Exited():
                self._on_exited(event)
            case Started():
                self._on_started(event)
            case Requested():
                self._on_requested(event)
            case TimeReached():
                pass  # due timers run below, whatever the event
            case NotStarted():
                self._on_not_started(event)
            case Dropped():
                self.waiters.drop(event.token)
            case Configured():
                self._on_configured(event)
            case Booted():
                self._on_booted()
        self._run_timers()
        self._settle()
        self._start_ready()
        self._close_turn()
        return self._decisions + list(self._replies)

    def deadline(self) -> float | None:
        """Monotonic time at which `handle(TimeReached())` is wanted next; None = never."""
        return self._timers[0][0] if self._timers else None

    def under_way(self) -> dict[int, Launch]:
        """Attempts whose processes may live, by id: after a restart the executor must find each one's end."""
        return {
            attempt_id: self._launch_of(live) for attempt_id, live in self._under_way.items() if not live.awaits_report
        }

    def forget_finished(self) -> None:
        """Drop runs from memory that have ended and are not the newest of their dag."""
        self.registry.forget_finished()

    # ---- events ------------------------------------------------------------------------------

    def _on_started(self, event: Started) -> None:
        live = self._under_way.get(event.attempt_id)
        if live is None:
            return
        live.pid = event.pid
        assert live.attempt is not None
        live.attempt.started_at = event.at  # saved with the end; until then the shim's record has it
        self._pause_s = 0.0

    def _on_exited(self, event: Exited) -> None:
        live = self._under_way.get(event.attempt_id)
        if live is None or live.awaits_report:
            return  # its end is recorded already
        live.pid = None
        attempt, ending = live.attempt, event.ending
        assert attempt is not None
        attempt.exit_code, attempt.signal = ending.exit_code, ending.signal
        attempt.started_at = ending.started_at or attempt.started_at
        attempt.finished_at = ending.finished_at or self.now.wall
        attempt.duration_s = ending.duration_s
        attempt.cpu_s, attempt.max_rss_bytes = ending.cpu_s, ending.max_rss_bytes
        attempt.log_dropped_bytes = ending.log_dropped_bytes
        verdict = transitions.judge(live.job, attempt, ending)
        waits_for_word = live.job.finish is Finish.REPORT and attempt.reported is None and verdict.move is Move.SUCCEED
        if waits_for_word and live.state is State.RUNNING:
            self._decisions.append(SaveAttempt(attempt))
            self._expect_report(live)
        else:
            self.conclude(live, ending, verdict)

    def _on_not_started(self, event: NotStarted) -> None:
        live = self._under_way.pop(event.attempt_id, None)
        if live is None:
            return
        node = live.node
        live.attempt, node.attempt_id, node.attempts = None, None, node.attempts - 1
        self.ready.release(live)
        self._decisions.append(DeleteAttempt(event.attempt_id))
        if live.state is State.STOPPING and not node.again:
            self.move(live, Move.HALTED, "stopped before it began")
        elif live.state is State.STOPPING:
            self.move(live, Move.HALTED)
            self.ask(live)
        else:
            self.move(live, Move.TAKE_BACK, event.reason)
        self._open_gates(live.run)
        if self.now.mono >= self._paused_until:
            if not self._pause_s:
                self.journal("start_refused", live, event.reason)
            self._pause_s = min(max(self._pause_s * 2, START_PAUSE_MIN_S), START_PAUSE_MAX_S)
            self._paused_until = self.now.mono + self._pause_s
            self.call_in(self._pause_s, lambda: None)

    def _on_requested(self, event: Requested) -> None:
        answer = planner.perform(self, event)
        if answer is not None:
            self.reply(event.token, answer)

    def _on_configured(self, event: Configured) -> None:
        self._set_definitions(event.definitions)
        for dag in self.definitions.dags.values():
            newest = self.registry.newest(dag.name)
            if newest is not None:
                self._adopt_new_jobs(newest, dag)

    def _set_definitions(self, definitions: Definitions) -> None:
        self.definitions = definitions
        self.job_dags = {job.name: dag.name for dag in definitions.dags.values() for job in dag.jobs}
        dag_limits = {dag.name: dag.max_running for dag in definitions.dags.values()}
        self.ready.configure(definitions.max_running, dag_limits, definitions.pools)

    def _on_booted(self) -> None:
        self.note("daemon_started")
        for dag in self.definitions.dags.values():
            newest = self.registry.newest(dag.name)
            if dag.autostart and not (newest and newest.unfinished):
                self.open_run(dag, self.registry.free_name(dag, self.now.wall), Trigger.AUTOSTART)

    # ---- verbs: what commands and events do to one job ------------------------------------------

    def move(self, live: LiveNode, move: Move, reason: str = "", by: str | None = None) -> None:
        """The one place where a state changes. Raises IllegalMoveError, and then nothing has changed."""
        target = transitions.target_of(move, live.state)
        live.run.counts[live.state] -= 1
        live.run.counts[target] += 1
        live.node.state, live.node.reason = target, reason
        live.node.by_operator = move in (Move.SKIP, Move.MARK_SUCCESS, Move.MARK_FAILED)
        self._changed_nodes[live] = None
        self._changed_runs[live.run] = None
        self._unsettled.append(live)
        self.journal(target, live, reason, by)

    def ask(self, live: LiveNode, *, forced: bool = False, by: str | None = None) -> None:
        """It shall run: queue it (once more), with all its retries; `forced` ignores needs, time and slots."""
        node = live.node
        node.forced, node.tries, node.retry_at, node.again = forced, 0, None, False
        if live.state in WAITING:
            self._changed_nodes[live] = None
            self._unsettled.append(live)
        else:
            self.move(live, Move.ASK, by=by)

    def halt(self, live: LiveNode, *, now: bool = False, again: bool = False, by: str | None = None) -> None:
        """It shall not run: a waiting job stops at once, an active one is told to; `again`: then queue it once more."""
        live.node.again = again
        reason = f"stopped by {by}" if by else "stopped"
        if live.state in WAITING:
            self.move(live, Move.DROP, reason, by)
            return
        if live.state is State.RUNNING:
            self.move(live, Move.HALT, reason, by)
        self._changed_nodes[live] = None
        assert live.attempt is not None
        if live.awaits_report:
            self.conclude(live, None, transitions.Verdict(Move.HALTED, reason))
        else:
            self._decisions.append(Signal(live.attempt.id, Halt.KILL if now else Halt.STOP))

    def conclude(self, live: LiveNode, ending: Ending | None, verdict: transitions.Verdict) -> None:
        """The attempt is over: record its final state, then what follows for the job."""
        attempt, node = live.attempt, live.node
        assert attempt is not None
        del self._under_way[attempt.id]
        self.ready.release(live)
        attempt.state = transitions.TRANSITIONS[verdict.move][1]
        stopped_by = node.reason if live.state is State.STOPPING and verdict.move is Move.HALTED else ""
        attempt.reason = stopped_by or verdict.reason
        self._decisions.append(SaveAttempt(attempt))
        again, was_stopping = node.again, live.state is State.STOPPING
        if verdict.move is Move.FAIL and not was_stopping and transitions.may_retry(live.job, node.tries, ending):
            self._retry(live, attempt.reason)
            return
        self.move(live, verdict.move, attempt.reason)
        self._open_gates(live.run)
        node.forced = node.again = False
        if again or (verdict.move is Move.LOSE and live.job.retry_lost and not was_stopping):
            self.ask(live)

    def _retry(self, live: LiveNode, why: str) -> None:
        delay_s = transitions.retry_delay_s(live.job, live.node.tries)
        live.node.tries += 1
        live.node.retry_at = self.now.wall + delay_s
        self.move(live, Move.RETRY, f"{why}; retry {live.node.tries} of {live.job.retries}")
        self.journal("retrying", live, f"in {transitions.format_duration(delay_s)}: {why}")
        self._wake_at_retry(live, delay_s)

    # ---- runs --------------------------------------------------------------------------------

    def open_run(
        self,
        dag: Dag,
        name: str,
        trigger: Trigger,
        *,
        only: Iterable[str] | None = None,
        after: LiveRun | None = None,
    ) -> LiveRun:
        """Begin a run with all its jobs queued, or, if `only` is given, all stopped (the caller asks for those)."""
        self._last_run_id += 1
        run_date = name.partition("@")[2][:10]
        gate = after.run.id if after is not None and after.active else None
        run = Run(
            id=self._last_run_id,
            name=name,
            dag=dag,
            run_date=run_date,
            trigger=trigger,
            created_at=self.now.wall,
            after=gate,
        )
        live_run = LiveRun(run)
        state = State.QUEUED if only is None else State.STOPPED
        added = live_run.add((Node(run_id=run.id, job=job.name, state=state), None) for job in dag.jobs)
        self.registry.add(live_run)
        self._changed_runs[live_run] = None
        self._note_run("run_started" if only is None else "run_created", live_run, f"by {trigger}")
        for live in added:
            self._changed_nodes[live] = None
            self._leave_out_if_disabled(live)
        self._unsettled.extend(added)
        return live_run

    def _adopt_new_jobs(self, live_run: LiveRun, dag: Dag) -> None:
        """A job that was added to the configuration appears in the newest run (CONTRACT 3)."""
        known = live_run.nodes
        new = [job for job in dag.jobs if job.name not in known]
        if not new:
            return
        state = State.QUEUED if live_run.unfinished else State.STOPPED
        kept = {job.name: job for job in live_run.dag.jobs}
        jobs = [kept.pop(job.name, job) for job in dag.jobs]
        live_run.run.dag = replace(live_run.dag, jobs=(*kept.values(), *jobs))
        added = live_run.add((Node(run_id=live_run.run.id, job=job.name, state=state), None) for job in new)
        self._changed_runs[live_run] = None
        for live in added:
            self._changed_nodes[live] = None
            self.journal(state, live, "added by the configuration")
            self._leave_out_if_disabled(live)
        self._unsettled.extend(added)

    def _leave_out_if_disabled(self, live: LiveNode) -> None:
        if not live.job.enabled:
            self.move(live, Move.SKIP, "disabled in the configuration")

    def _open_gates(self, ended: LiveRun) -> None:
        """Runs that waited until nothing of this one is under way may start now."""
        if ended.active:
            return
        for live_run in self.registry.waiting_for(ended):
            live_run.run.after = None
            self._changed_runs[live_run] = None
            self._unsettled.extend(live_run.nodes.values())

    # ---- settling: what follows from a change ---------------------------------------------------

    def _settle(self) -> None:
        """Carry every change on to what needs it, until nothing moves any more."""
        while self._unsettled:
            live = self._unsettled.pop()
            for edge in live.downstream:
                if edge.update(live):
                    self._unsettled.append(edge.downstream)
            self._align(live)

    def _align(self, live: LiveNode) -> None:
        """Bring a waiting job in line with how its needs stand, and into or out of the ready queue."""
        if live.state in WAITING:
            standing = live.standing
            if standing is Standing.IMPOSSIBLE:
                self.move(live, Move.RULE_OUT, live.obstacle())
            elif standing is Standing.BLOCKED and live.state is State.QUEUED:
                self.move(live, Move.BLOCK, live.obstacle())
            elif standing is not Standing.BLOCKED and live.state is State.BLOCKED:
                self.move(live, Move.UNBLOCK)
        if self._may_start(live):
            self.ready.add(live)
        else:
            self.ready.discard(live)

    def _may_start(self, live: LiveNode) -> bool:
        return (
            live.state is State.QUEUED
            and live.standing is Standing.MET
            and not self.held(live)
            and (live.node.forced or live.node.retry_at is None or live.node.retry_at <= self.now.wall)
            and live.run.run.after is None
        )

    def held(self, live: LiveNode) -> Hold | None:
        """The hold on the job or on its dag, if there is one."""
        return self.holds.get(live.job.name) or self.holds.get(live.job.dag)

    def unsettle(self, nodes: Iterable[LiveNode]) -> None:
        """Something outside of these jobs changed (a hold, a gate): look at them again."""
        self._unsettled.extend(nodes)

    # ---- starting ----------------------------------------------------------------------------

    def _start_ready(self) -> None:
        if self.leaving or self.now.mono < self._paused_until:
            return
        while (candidate := self.ready.take()) is not None:
            assert isinstance(candidate, LiveNode)
            self._launch(candidate)
        self._settle()

    def _launch(self, live: LiveNode) -> None:
        node, run = live.node, live.run.run
        self._last_attempt_id += 1
        node.attempts += 1
        node.attempt_id = self._last_attempt_id
        node.retry_at = None
        live.attempt = Attempt(
            id=self._last_attempt_id,
            run_id=run.id,
            job=live.job.name,
            number=node.attempts,
            state=State.RUNNING,
            log=f"{live.job.dag}/{run.name}/{live.job.name}.{node.attempts}.log",
            started_at=self.now.wall,
        )
        self._under_way[live.attempt.id] = live
        self.move(live, Move.LAUNCH)
        if run.started_at is None:
            run.started_at = self.now.wall
        self._decisions += [SaveAttempt(live.attempt), self._launch_of(live)]

    def _launch_of(self, live: LiveNode) -> Launch:
        attempt = live.attempt
        assert attempt is not None
        return Launch(
            attempt_id=attempt.id,
            number=attempt.number,
            job=live.job,
            run=live.run.run.name,
            run_date=live.run.run.run_date,
            timezone=live.run.dag.timezone,
            log=attempt.log,
        )

    def _resume(self, live: LiveNode) -> None:
        """After a restore: slots, timers and the queue as they were."""
        if live.state in ACTIVE:
            assert live.attempt is not None
            self.ready.occupy(live)
            self._under_way[live.attempt.id] = live
            if live.awaits_report:
                self._expect_report(live)
        if live.node.retry_at is not None:
            self._wake_at_retry(live, live.node.retry_at - self.now.wall)
        self._unsettled.append(live)

    # ---- time --------------------------------------------------------------------------------

    def call_in(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (self.now.mono + max(delay_s, 0.0), self._timer_count, callback))

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self.now.mono:
            heapq.heappop(self._timers)[2]()

    def _wake_at_retry(self, live: LiveNode, delay_s: float) -> None:
        due_at = live.node.retry_at

        def retry_is_due() -> None:
            if live.state is State.QUEUED and live.node.retry_at == due_at:
                live.node.retry_at = None
                self._changed_nodes[live] = None
                self._unsettled.append(live)

        self.call_in(delay_s, retry_is_due)

    def _expect_report(self, live: LiveNode) -> None:
        """Its processes are gone, its word is missing: the timeout still ends it as failed."""
        attempt, timeout_s = live.attempt, live.job.timeout_s
        assert attempt is not None
        if timeout_s is None:
            return

        def no_report_came() -> None:
            if live.attempt is attempt and live.awaits_report:
                reason = f"no report within {transitions.format_duration(timeout_s)}"
                self.conclude(live, None, transitions.Verdict(Move.FAIL, reason))

        self.call_in(attempt.started_at + timeout_s - self.now.wall, no_report_came)

    # ---- the end of a turn -----------------------------------------------------------------------

    def _close_turn(self) -> None:
        for live_run in list(self._changed_runs):
            self._tell_run_state(live_run)
        self._decisions += [SaveRun(live_run.run) for live_run in self._changed_runs]
        self._decisions += [SaveNode(live.node) for live in self._changed_nodes]
        for token, result in self.waiters.answers(self._changed_runs, self.now):
            self.reply(token, result)
        if self.leaving and all(live.awaits_report for live in self._under_way.values()):
            self._decisions.append(Leave())

    def _tell_run_state(self, live_run: LiveRun) -> None:
        state = live_run.state
        if state is live_run.shown_state:
            return
        first, live_run.shown_state = live_run.shown_state is None, state
        live_run.run.finished_at = None if state is State.RUNNING else self.now.wall
        if state is not State.RUNNING:
            self._note_run(f"run_{state}", live_run)
        elif not first:
            self._note_run("run_resumed", live_run)

    # ---- telling -----------------------------------------------------------------------------

    def decide(self, decision: Decision) -> None:
        self._decisions.append(decision)

    def reply(self, token: int, answer: dict[str, object] | Refusal) -> None:
        self._replies.append(Reply(token, answer))

    def journal(self, kind: str, live: LiveNode, text: str = "", by: str | None = None) -> None:
        attempt = live.attempt.number if live.attempt else None
        self.note(kind, run=live.run.run.name, dag=live.job.dag, job=live.job.name, attempt=attempt, text=text, by=by)

    def _note_run(self, kind: str, live_run: LiveRun, text: str = "") -> None:
        self.note(kind, run=live_run.run.name, dag=live_run.dag.name, text=text)

    def note(
        self,
        kind: str,
        *,
        run: str | None = None,
        dag: str | None = None,
        job: str | None = None,
        attempt: int | None = None,
        text: str = "",
        by: str | None = None,
    ) -> None:
        """Write one entry of the journal."""
        self.last_event_id += 1
        entry = JournalEntry(id=self.last_event_id, at=self.now.wall, kind=str(kind), text=text, by=by)
        entry.run, entry.dag, entry.job, entry.attempt = run, dag, job, attempt
        self._decisions.append(Journal(entry))
