"""The engine: events in, decisions out. Pure: time is an argument, and nothing here acts.

`handle` takes one event and the time, and returns what is to be saved and done. The daemon restores
it from the store, calls it once an event, and asks for its next deadline. The parts, each with the
rules of one thing: `planner` (what commands mean), `attempts` (from launch to verdict), `flow` (the
states of jobs and what follows from a change), `registry` (runs and their names), `ledger` (what a
turn saves and tells).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from supervisor.core import planner
from supervisor.core.attempts import Attempts
from supervisor.core.events import (
    Booted,
    Configured,
    Decision,
    DeleteHold,
    Dropped,
    Event,
    Exited,
    Launch,
    Leave,
    NotStarted,
    Now,
    Refused,
    Requested,
    SaveHold,
    Started,
    TimeReached,
)
from supervisor.core.flow import Flow
from supervisor.core.graph import dependency_order
from supervisor.core.ledger import Ledger
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import Attempt, Dag, Definitions, Hold, Job, Node, Run, Snapshot, State, Trigger
from supervisor.core.registry import Registry
from supervisor.core.timers import Timers
from supervisor.core.transitions import Move
from supervisor.core.waiters import Waiters

__all__ = ["Engine", "Snapshot"]

#: Who skips a job that is disabled, in the journal.
_CONFIGURATION = "the configuration"


class Engine:
    """Runs, their jobs, and the rules. Call `restore` once, then `handle` for each event.

    `is_taken`: whether a run of this name was ever recorded.
    """

    def __init__(self, definitions: Definitions, is_taken: Callable[[str], bool] = lambda _run_name: False) -> None:
        self.registry = Registry(is_taken)
        self.ledger = Ledger()
        self.timers = Timers()
        self.flow = Flow(self.ledger, self.registry)
        self.attempts = Attempts(self.flow, self.ledger, self.timers)
        self.waiters = Waiters(self.timers)
        self.leaving = False  # start nothing more, leave when nothing is under way
        self._leave_at_once = False
        self._last_run_id = 0
        self._set_definitions(definitions)

    # ---- the door ----------------------------------------------------------------------------

    def restore(self, snapshot: Snapshot, now: Now) -> None:
        """Take in durable state: all of it before the first event, or older runs at any time.

        What follows from it (signals that may not have been sent) comes with the next event's decisions.
        """
        self.ledger.now = now
        self.ledger.last_event_id = max(self.last_event_id, snapshot.last_event_id)
        self._last_run_id = max(self._last_run_id, snapshot.last_run_id)
        self.attempts.continue_after(snapshot.last_attempt_id)
        for hold in snapshot.holds:
            self.flow.place_hold(hold)
            self._watch_hold(hold)
        attempts = {attempt.id: attempt for attempt in snapshot.attempts}
        nodes: dict[int, list[tuple[Node, Attempt | None]]] = {}
        for node in snapshot.nodes:
            nodes.setdefault(node.run_id, []).append((node, attempts.get(node.attempt_id or 0)))
        restored = [LiveRun(run) for run in sorted(snapshot.runs, key=lambda run: run.id)]
        for live_run in restored:
            live_run.add(nodes.get(live_run.run.id, ()))
            live_run.shown_state = live_run.state
            self.registry.add(live_run)
            for live in live_run.nodes.values():
                self.attempts.resume(live)
        for live_run in restored:
            self.flow.look_at(live_run.nodes.values())
            gate = self.registry.by_id(live_run.run.after)
            if live_run.run.after is not None and not (gate and gate.active):  # it ended while this run was forgotten
                self.flow.open_gate(live_run)

    def handle(self, event: Event, now: Now) -> list[Decision]:
        """Take in one event; what is to be saved and done comes back, in order, replies last."""
        self.ledger.now = now
        match event:
            case Exited():
                self.attempts.exited(event)
            case Started():
                self.attempts.started(event)
            case TimeReached():
                pass  # due timers run below, whatever the event
            case Requested():
                answer = planner.perform(self, event)
                if answer is not None:
                    self.ledger.reply(event.token, answer)
            case NotStarted():
                self.attempts.not_started(event)
            case Refused():
                self.ledger.note("refused", text=event.text, by=event.by)
            case Dropped():
                self.waiters.drop(event.token)
            case Configured():
                self._on_configured(event)
            case Booted():
                self._on_booted()
        self.timers.run_due(now.mono)
        self.flow.settle()
        self._start_ready()
        return self._close_turn()

    def deadline(self) -> float | None:
        """Monotonic time at which `handle(TimeReached())` is wanted next; None = never."""
        return self.timers.deadline()

    def under_way(self) -> dict[int, Launch]:
        """Attempts whose processes may live, by id: after a restart the executor must find each one's end."""
        return {
            attempt_id: self.attempts.launch_of(live)
            for attempt_id, live in self.attempts.under_way.items()
            if not live.awaits_report
        }

    def forget_finished(self) -> None:
        """Drop runs from memory that have ended and are not the newest of their dag."""
        self.registry.forget_finished()

    # ---- what others see -----------------------------------------------------------------------

    @property
    def now(self) -> Now:
        return self.ledger.now

    @property
    def last_event_id(self) -> int:
        return self.ledger.last_event_id

    @property
    def holds(self) -> dict[str, Hold]:
        """By the name of the job or dag; read only."""
        return self.flow.holds

    # ---- the turn ----------------------------------------------------------------------------

    def _start_ready(self) -> None:
        if self.leaving or self.attempts.paused:
            return
        while (live := self.flow.ready.take()) is not None:
            self.attempts.launch(live)  # which changes nothing for those downstream: they wait either way

    def _close_turn(self) -> list[Decision]:
        self.flow.tell_runs()
        for token, answer in self.waiters.answers(self.flow.touched, self.now):
            self.ledger.reply(token, answer)
        self.flow.touched.clear()
        if self.leaving:
            self._leave_when_done()
        return self.ledger.close()

    def _leave_when_done(self) -> None:
        if self._leave_at_once or all(live.awaits_report for live in self.attempts.under_way.values()):
            self.ledger.decide(Leave())

    def leave(self, *, at_once: bool) -> None:
        """Start nothing more; leave at once, or as soon as no attempt is under way."""
        self.leaving = True
        self._leave_at_once = self._leave_at_once or at_once

    # ---- definitions ---------------------------------------------------------------------------

    def _set_definitions(self, definitions: Definitions) -> None:
        self.definitions = definitions
        self.job_dags = {job.name: dag.name for dag in definitions.dags.values() for job in dag.jobs}
        dag_limits = {dag.name: dag.max_running for dag in definitions.dags.values()}
        self.flow.ready.configure(definitions.max_running, dag_limits, definitions.pools)

    def _on_configured(self, event: Configured) -> None:
        self._set_definitions(event.definitions)
        if event.by is not None:
            self.ledger.note("reloaded", by=event.by)
        self._adopt_new_jobs()

    def _on_booted(self) -> None:
        self.ledger.note("daemon_started")
        self._adopt_new_jobs()
        for dag in self.definitions.dags.values():
            if dag.autostart and not any(live_run.unfinished for live_run in self.registry.of_dag(dag.name)):
                self.open_run(dag, self.registry.free_name(dag, self.now.wall), Trigger.AUTOSTART)

    def _adopt_new_jobs(self) -> None:
        """A job that was added to the configuration appears in its dag's newest run (CONTRACT 3)."""
        for dag in self.definitions.dags.values():
            newest = self.registry.newest(dag.name)
            new = [job for job in dag.jobs if job.name not in newest.nodes] if newest else []
            if newest and new:
                self._adopt(newest, new)

    def _adopt(self, live_run: LiveRun, new: list[Job]) -> None:
        jobs = {job.name: job for job in (*live_run.dag.jobs, *new)}
        upstreams = {name: [need.job for group in job.needs for need in group] for name, job in jobs.items()}
        in_order = tuple(jobs[name] for name in dependency_order(upstreams))
        live_run.run.dag = replace(live_run.dag, jobs=in_order)
        self.ledger.save_run(live_run)
        state = State.QUEUED if live_run.unfinished else State.STOPPED
        for live in self._add_nodes(live_run, new, state):
            self.ledger.note_job(state, live, "added by the configuration")
            self._leave_out_if_disabled(live)

    # ---- runs --------------------------------------------------------------------------------

    def open_run(
        self,
        dag: Dag,
        name: str,
        trigger: Trigger,
        *,
        only: Iterable[str] | None = None,
        after: LiveRun | None = None,
        by: str | None = None,
    ) -> LiveRun:
        """Begin a run with all its jobs queued, or, if `only` is given, all stopped (the caller asks for those).

        `after`: it starts nothing before nothing of that run is under way, nor of the one that run waits for.
        """
        self._last_run_id += 1
        run = Run(
            id=self._last_run_id,
            name=name,
            dag=dag,
            run_date=name.partition("@")[2][:10],
            trigger=trigger,
            created_at=self.now.wall,
        )
        if after is not None:
            run.after = after.run.id if after.active else after.run.after
        live_run = LiveRun(run)
        self.registry.add(live_run)
        self.ledger.save_run(live_run)
        self.ledger.note_run("run_started" if only is None else "run_created", live_run, f"by {trigger}", by)
        for live in self._add_nodes(live_run, dag.jobs, State.QUEUED if only is None else State.STOPPED):
            self._leave_out_if_disabled(live)
        return live_run

    def _add_nodes(self, live_run: LiveRun, jobs: Iterable[Job], state: State) -> list[LiveNode]:
        added = live_run.add((Node(run_id=live_run.run.id, job=job.name, state=state), None) for job in jobs)
        for live in added:
            self.ledger.save_node(live)
        self.flow.look_at(added)
        self.flow.touched[live_run] = None
        return added

    def _leave_out_if_disabled(self, live: LiveNode) -> None:
        if not live.job.enabled:
            self.flow.move(live, Move.SKIP, "disabled in the configuration", _CONFIGURATION)

    # ---- holds -------------------------------------------------------------------------------

    def place_hold(self, hold: Hold) -> None:
        self.flow.place_hold(hold)
        self.ledger.decide(SaveHold(hold))
        self._note_hold("held", hold.name, hold.reason, hold.by)
        self._watch_hold(hold)

    def lift_hold(self, name: str, text: str = "", by: str | None = None) -> None:
        self.flow.lift_hold(name)
        self.ledger.decide(DeleteHold(name))
        self._note_hold("released", name, text, by)

    def _watch_hold(self, hold: Hold) -> None:
        """Lift it when its time is up, by the wall clock, which may have been set meanwhile."""
        if hold.until is None:
            return
        until = hold.until

        def look() -> None:
            if self.holds.get(hold.name) is not hold:
                return
            if self.now.wall < until:
                self._watch_hold(hold)
            else:
                self.lift_hold(hold.name, "its time is up")

        self.timers.call_at(self.now.mono + max(0.0, until - self.now.wall), look)

    def _note_hold(self, kind: str, name: str, text: str, by: str | None) -> None:
        is_dag = name in self.definitions.dags or self.registry.newest(name) is not None
        dag, job = (name, None) if is_dag else (self.job_dags.get(name), name)
        self.ledger.note(kind, dag=dag, job=job, text=text, by=by)
