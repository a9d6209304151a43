"""Attempts from launch to verdict: starting, stopping, ending, retrying, and reports about them.

The engine hands it the executor's events and lets it launch; commands stop jobs through it. States
change by `Flow.move` only.
"""

from __future__ import annotations

from supervisor.core import transitions
from supervisor.core.events import (
    DeleteAttempt,
    Ending,
    Exited,
    Halt,
    Launch,
    NotStarted,
    SaveAttempt,
    Signal,
    Started,
)
from supervisor.core.flow import Flow
from supervisor.core.ledger import Ledger
from supervisor.core.live import LiveNode
from supervisor.core.model import ACTIVE, WAITING, Attempt, Finish, Outcome, State
from supervisor.core.timers import Timers
from supervisor.core.transitions import Move, Verdict, format_duration

#: After a start that the machine refused (no process, no memory), nothing is started for this long,
#: doubling from the first to the second.
START_PAUSE_MIN_S, START_PAUSE_MAX_S = 0.1, 30.0
#: A lost job is not started again sooner: what has killed its shim may do so again at once.
LOST_DELAY_MIN_S = 1.0


class Attempts:
    def __init__(self, flow: Flow, ledger: Ledger, timers: Timers) -> None:
        self._flow = flow
        self._ledger = ledger
        self._timers = timers
        self.last_id = 0
        self.under_way: dict[int, LiveNode] = {}  # attempt id -> its job
        self._pause_s = 0.0  # the latest pause, 0 = starts work
        self._paused_until = 0.0
        self._refused_up_to = 0  # what becomes of attempts up to this id says nothing about starts from now on

    # ---- starting ----------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        return self._ledger.now.mono < self._paused_until

    def launch(self, live: LiveNode) -> None:
        """Start its next attempt; its slots are taken."""
        node, live_run, wall = live.node, live.run, self._ledger.now.wall
        self.last_id += 1
        node.attempts += 1
        node.attempt_id = self.last_id
        live.attempt = attempt = Attempt(
            id=self.last_id,
            run_id=node.run_id,
            job=node.job,
            number=node.attempts,
            state=State.RUNNING,
            log=f"{live.job.dag}/{live_run.run.name}/{node.job}.{node.attempts}.log",
            started_at=wall,
        )
        self.under_way[attempt.id] = live
        self._flow.move(live, Move.LAUNCH)
        if live_run.run.started_at is None:
            live_run.run.started_at = wall
            self._ledger.save_run(live_run)
        self._ledger.decide(SaveAttempt(attempt))
        self._ledger.decide(self.launch_of(live))

    def launch_of(self, live: LiveNode) -> Launch:
        attempt, run = live.attempt, live.run.run
        assert attempt is not None
        return Launch(
            attempt_id=attempt.id,
            number=attempt.number,
            job=live.job,
            run=run.name,
            run_date=run.run_date,
            timezone=run.dag.timezone,
            log=attempt.log,
        )

    def started(self, event: Started) -> None:
        live = self.under_way.get(event.attempt_id)
        if live is None or live.awaits_report:
            return
        assert live.attempt is not None
        live.pid = event.pid
        live.attempt.started_at = event.at  # saved with the end; until then the shim's record has it
        if event.attempt_id > self._refused_up_to:
            self._pause_s = 0.0

    def not_started(self, event: NotStarted) -> None:
        """It goes back to where it was; nothing is consumed, and new starts wait a little."""
        live = self.under_way.get(event.attempt_id)
        if live is None or live.awaits_report:
            return
        node, forced = live.node, live.node.forced
        del self.under_way[event.attempt_id]
        live.attempt, live.pid, node.attempt_id, node.attempts = None, None, None, node.attempts - 1
        self._flow.ready.release(live)
        self._ledger.decide(DeleteAttempt(event.attempt_id))
        if live.state is State.RUNNING:
            self._flow.move(live, Move.TAKE_BACK, event.reason)
        else:
            again = node.again
            self._flow.move(live, Move.HALTED, "stopped before it began")
            if again:
                self._flow.ask(live, forced=forced)
        if event.attempt_id > self._refused_up_to and not self.paused:
            self._pause(live, event.reason)

    def _pause(self, live: LiveNode, reason: str) -> None:
        if not self._pause_s:
            self._ledger.note_job("start_refused", live, reason)
        self._pause_s = min(max(self._pause_s * 2, START_PAUSE_MIN_S), START_PAUSE_MAX_S)
        self._paused_until = self._ledger.now.mono + self._pause_s
        self._refused_up_to = self.last_id
        self._timers.call_at(self._paused_until, lambda: None)  # a turn of the engine starts what waits

    # ---- stopping ----------------------------------------------------------------------------

    def halt(
        self, live: LiveNode, *, now: bool = False, again: bool = False, forced: bool = False, by: str | None = None
    ) -> None:
        """It shall not run: a waiting job stops at once, an active one is told to.

        `now`: by KILL. `again`: queue it once more when it has stopped, and `forced` if so.
        """
        reason = f"stopped by {by}" if by else "stopped"
        if live.state in WAITING:
            self._flow.move(live, Move.DROP, reason, by)
            return
        assert live.attempt is not None
        was_running = live.state is State.RUNNING
        if was_running:
            self._flow.move(live, Move.HALT, reason, by)
        live.node.again, live.node.forced = again, forced
        self._ledger.save_node(live)
        if live.awaits_report:
            self.conclude(live, None, Verdict(Move.HALTED, reason))
        elif was_running or now:
            self._ledger.decide(Signal(live.attempt.id, Halt.KILL if now else Halt.STOP))

    def report(self, live: LiveNode, outcome: Outcome | None, data: int | None, message: str, by: str) -> None:
        """Someone told how its newest attempt goes (`outcome`) or how much data it has handled."""
        attempt = live.attempt
        assert attempt is not None
        attempt.data = attempt.data if data is None else data
        attempt.message = message or attempt.message
        is_first, attempt.reported = attempt.reported is None, outcome or attempt.reported
        told = ", ".join([*([outcome] if outcome else []), *([] if data is None else [f"data {data}"])])
        self._ledger.note_job("report", live, f"{told}: {message}" if message else told, by)
        self._ledger.decide(SaveAttempt(attempt))
        if outcome is None or live.job.finish is not Finish.REPORT:
            return
        if live.awaits_report:
            self.conclude(live, None, transitions.judge_report(attempt))
        elif live.state is State.RUNNING and is_first:
            self._ledger.decide(Signal(attempt.id, Halt.WIND_DOWN))

    # ---- ending ------------------------------------------------------------------------------

    def exited(self, event: Exited) -> None:
        live = self.under_way.get(event.attempt_id)
        if live is None or live.awaits_report:
            return  # its end is recorded already
        attempt, ending = live.attempt, event.ending
        assert attempt is not None
        live.pid = None
        attempt.exit_code, attempt.signal = ending.exit_code, ending.signal
        attempt.started_at = ending.started_at or attempt.started_at
        attempt.finished_at = ending.finished_at or self._ledger.now.wall
        attempt.duration_s = ending.duration_s
        attempt.cpu_s, attempt.max_rss_bytes = ending.cpu_s, ending.max_rss_bytes
        attempt.log_dropped_bytes = ending.log_dropped_bytes
        verdict = transitions.judge(live.job, attempt, ending)
        if verdict.move is Move.SUCCEED and live.job.finish is Finish.REPORT and attempt.reported is None:
            if live.state is State.RUNNING:
                self._ledger.decide(SaveAttempt(attempt))
                self._expect_report(live)
                return
            verdict = Verdict(Move.HALTED, "stopped")
        self.conclude(live, ending, verdict)

    def conclude(self, live: LiveNode, ending: Ending | None, verdict: Verdict) -> None:
        """The attempt is over: record its final state, then what follows for the job."""
        attempt, node, job = live.attempt, live.node, live.job
        assert attempt is not None
        del self.under_way[attempt.id]
        self._flow.ready.release(live)
        was_stopping, again, forced = live.state is State.STOPPING, node.again, node.forced
        attempt.state = transitions.TRANSITIONS[verdict.move][1]
        attempt.reason = node.reason if was_stopping and verdict.move is Move.HALTED else verdict.reason
        attempt.finished_at = attempt.finished_at or self._ledger.now.wall
        self._ledger.decide(SaveAttempt(attempt))
        if verdict.move is Move.FAIL and not was_stopping and transitions.may_retry(job, node.tries, ending):
            self._retry(live, attempt.reason)
            return
        self._flow.move(live, verdict.move, attempt.reason)
        if again:
            self._flow.ask(live, forced=forced)
        elif verdict.move is Move.LOSE and job.retry_lost and not was_stopping:
            tries = node.tries
            self._flow.ask(live, forced=forced)
            node.tries = tries  # a lost attempt takes none, and gives none back
            self._delay(live, max(LOST_DELAY_MIN_S, transitions.retry_delay_s(job, 0)))

    def _retry(self, live: LiveNode, why: str) -> None:
        delay_s = transitions.retry_delay_s(live.job, live.node.tries)
        live.node.tries += 1
        self._flow.move(live, Move.RETRY, f"{why}; retry {live.node.tries} of {live.job.retries}")
        self._ledger.note_job("retrying", live, f"in {format_duration(delay_s)}: {why}")
        self._delay(live, delay_s)

    def _delay(self, live: LiveNode, delay_s: float) -> None:
        """The queued job starts no sooner than in `delay_s` seconds."""
        now, node = self._ledger.now, live.node
        if delay_s <= 0:
            node.retry_at = None
            return
        due_at = node.retry_at = now.wall + delay_s

        def retry_is_due() -> None:
            if node.retry_at == due_at:
                node.retry_at = None
                self._ledger.save_node(live)
                self._flow.look_at([live])

        self._timers.call_at(now.mono + delay_s, retry_is_due)

    def _expect_report(self, live: LiveNode) -> None:
        """Its processes are gone, its word is missing: the timeout still ends it as failed."""
        attempt, timeout_s, now = live.attempt, live.job.timeout_s, self._ledger.now
        assert attempt is not None
        assert attempt.finished_at is not None
        if timeout_s is None:
            return
        ran_s = attempt.finished_at - attempt.started_at if attempt.duration_s is None else attempt.duration_s
        waited_s = max(0.0, now.wall - attempt.finished_at)

        def no_report_came() -> None:
            if live.attempt is attempt and live.awaits_report:
                reason = f"no report within {format_duration(timeout_s)}"
                self.conclude(live, None, Verdict(Move.FAIL, reason))

        self._timers.call_at(now.mono + timeout_s - ran_s - waited_s, no_report_came)

    # ---- after a restart ---------------------------------------------------------------------

    def continue_after(self, last_id: int) -> None:
        """Attempts up to this id were made before. Those that never started do not mean that starts fail now."""
        self.last_id = self._refused_up_to = max(self.last_id, last_id)

    def resume(self, live: LiveNode) -> None:
        """Slots, timers and signals of a restored job, as they were when it was recorded."""
        node, job = live.node, live.job
        if live.state in ACTIVE:
            assert live.attempt is not None
            self._flow.ready.occupy(live)
            self.under_way[live.attempt.id] = live
            if live.awaits_report:
                self._expect_report(live)
            elif live.state is State.STOPPING:
                self._ledger.decide(Signal(live.attempt.id, Halt.STOP))
            elif live.attempt.reported and job.finish is Finish.REPORT:
                self._ledger.decide(Signal(live.attempt.id, Halt.WIND_DOWN))
        elif node.retry_at is not None:
            # A clock that was set back meanwhile must not make it wait for years.
            delays_s = [transitions.retry_delay_s(job, tries) for tries in (0, max(0, node.tries - 1))]
            longest_s = max(LOST_DELAY_MIN_S, *delays_s)
            self._delay(live, min(node.retry_at - self._ledger.now.wall, longest_s))
            self._ledger.save_node(live)
