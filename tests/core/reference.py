"""The interface once more, as a small machine: what must have become of every job, given what went in.

`Reference` takes in what a daemon has committed: what it was asked, which ends it heard of, and when.
How an attempt truly ended it looks up in the world's ledger. From these and the definitions it works
out every state by itself; what it takes from the daemon are choices only: names of new runs, and which
of the jobs that may start does. Plain and slow; nothing of the engine's is used but its nouns.
What commands mean is in `reference_commands`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from supervisor.core.engine import Engine
from supervisor.core.events import (
    Booted,
    Configured,
    Decision,
    Ending,
    Event,
    Exited,
    Launch,
    Leave,
    NotStarted,
    Now,
    Refusal,
    Reply,
    Requested,
    SaveRun,
)
from supervisor.core.model import Dag, Definitions, Job, Run
from tests.core import naive, reference_commands
from tests.core.courses import NEVER, WAITING, Course, Seat
from tests.core.fake_store import FakeStore


class Reference:
    """`truth`: how attempts ended, by id."""

    def __init__(self, definitions: Definitions, truth: Mapping[int, Ending], now: Now) -> None:
        self.definitions = definitions
        self.now = now
        self.runs: dict[int, Course] = {}
        self.holds: dict[str, float | None] = {}  # name -> until, wall clock
        self.under_way: dict[int, Seat] = {}  # attempt id ->
        self.finals: dict[int, str] = {}  # attempt id -> its final state
        self.leaving = ""  # "at once", "when done"
        self.touched: set[Course] = set()  # since last compared
        self._truth = truth
        self._made: list[Run] = []  # by the daemon, in this event
        self._last_attempt = 0

    # ---- comparisons -----------------------------------------------------------------------------

    def compare(self, store: FakeStore, *, thoroughly: bool = False) -> None:
        """What was committed is what must be; by default only of the runs that have changed since."""
        for run in list(self.runs.values()) if thoroughly else self.touched:
            self._compare_run(store, run)
        self.touched.clear()
        assert store.runs.keys() == self.runs.keys(), "other runs than there were"
        assert store.attempts.keys() == self.finals.keys() | self.under_way.keys(), "other attempts than there were"
        held = {hold.name: hold.until for hold in store.holds.values()}
        assert held == self.holds, f"held is {held}, should be {self.holds}"

    def _compare_run(self, store: FakeStore, run: Course) -> None:
        saved = store.runs[run.id]
        jobs = {job.name: job for job in saved.dag.jobs}
        assert jobs == {name: seat.job for name, seat in run.seats.items()}, f"{run.name} is defined otherwise"
        assert (saved.finished_at is None) == (run.state == "running"), f"{run.name} should be {run.state}"
        assert store.folded_runs[run.name] == run.state, f"{run.name} is {run.state}, by the journal not"
        if run.state == "running" and not run.gate_is_vague:
            assert (saved.after is None) == (run.gate is None), f"{run.name} waits for {saved.after}"
        for seat in run.seats.values():
            name, node = f"{seat.job.name} of {run.name}", store.nodes[run.id, seat.job.name]
            assert node.state == seat.state, f"{name} is {node.state}, should be {seat.state}"
            assert store.folded[run.name, seat.job.name] == seat.state, f"{name} is {seat.state}, by the journal not"
            assert replace(node, reason="") == seat.as_node(), f"{name} is {node}, should be {seat.as_node()}"
            if seat.attempt is not None:
                self._compare_attempt(store, seat.attempt, seat)

    def _compare_attempt(self, store: FakeStore, attempt_id: int, seat: Seat) -> None:
        saved, should_be = store.attempts[attempt_id], self.finals.get(attempt_id, "running")
        assert saved.state == should_be, f"attempt {attempt_id} is {saved.state}, should be {should_be}"
        assert saved.reported == seat.reported, f"attempt {attempt_id} was reported {saved.reported}"

    def compare_memory(self, engine: Engine) -> None:
        """An engine that was just restored remembers what counts."""
        for run in self.runs.values():
            live_run = engine.registry.by_name(run.name)
            assert live_run is not None or (run.state != "running" and self.newest(run.dag) is not run), run.name
            for name, live in live_run.nodes.items() if live_run else ():
                state = run.seats[name].state
                assert live.state == state, f"{name} of {run.name} is restored as {live.state}, was {state}"
        expected = {attempt_id for attempt_id, seat in self.under_way.items() if not seat.awaits_report}
        assert engine.under_way().keys() == expected, "the engine looks for other attempts than are under way"

    # ---- the daemon's lives ----------------------------------------------------------------------

    def begin_life(self, now: Now) -> None:
        """Another daemon takes over what was committed; what had to wait goes on to wait, by the wall clock."""
        self.now, self.leaving = now, ""
        for run in self.runs.values():
            for seat in run.seats.values():
                if seat.due_wall is not None:
                    longest_s = max(
                        naive.LOST_DELAY_S,
                        *(naive.retry_delay_s(seat.job, tries) for tries in (0, max(0, seat.tries - 1))),
                    )
                    seat.due = now.mono + min(seat.due_wall - now.wall, longest_s)
                if seat.fails_at is not None:
                    seat.fails_at = self._report_due(seat)

    def take_in(self, event: Event, now: Now, decisions: list[Decision], *, is_paused: bool) -> None:
        """What was committed together. `is_paused`: the machine refused a start, so none is tried for now."""
        self.now = now
        self._made = list({each.run.id: each.run for each in decisions if isinstance(each, SaveRun)}.values())
        self._made = [run for run in self._made if run.id not in self.runs]
        self._happen(event, decisions)
        self._pass_time()
        self._settle()
        for decision in decisions:
            if isinstance(decision, Launch):
                self._launch(decision)
        assert not self._made, f"nobody asked for {self._made}"
        if not self.leaving and not is_paused:
            self._check_nobody_idles()
        nothing_runs = all(seat.awaits_report for seat in self.under_way.values())
        done = self.leaving == "at once" or (self.leaving and nothing_runs)
        assert bool(done) == any(isinstance(each, Leave) for each in decisions), f"leaving: {self.leaving}"

    def _happen(self, event: Event, decisions: list[Decision]) -> None:
        match event:
            case Exited(attempt_id):
                self._exited(attempt_id)
            case NotStarted(attempt_id):
                self._not_started(attempt_id)
            case Requested():
                [answer] = [each.result for each in decisions if isinstance(each, Reply) and each.token == event.token]
                reference_commands.obey(self, event.command, None if isinstance(answer, Refusal) else answer)
            case Configured(definitions):
                self.definitions = definitions
                self._adopt_new_jobs()
            case Booted():
                self._adopt_new_jobs()
                for dag in self.definitions.dags.values():
                    if dag.autostart and not any(run.state == "running" for run in self.runs_of(dag.name)):
                        self.open_run(dag, "queued")

    # ---- runs ------------------------------------------------------------------------------------

    def runs_of(self, dag: str) -> list[Course]:
        """Oldest first."""
        return [run for _, run in sorted(self.runs.items()) if run.dag == dag]

    def newest(self, dag: str) -> Course | None:
        runs = self.runs_of(dag)
        return runs[-1] if runs else None

    def by_name(self, name: str) -> Course | None:
        return next((run for run in self.runs.values() if run.name == name), None)

    def open_run(self, dag: Dag, state: str) -> Course:
        """The daemon has chosen its id and name."""
        assert self._made, f"no run of {dag.name} was made"
        made = self._made.pop(0)
        assert made.dag.name == dag.name, f"{made.name} was made for {dag.name}"
        assert made.name.startswith(f"{dag.name}@"), made.name
        assert self.by_name(made.name) is None, f"the name {made.name} is taken"
        assert made.id > max(self.runs, default=0), f"the id of {made.name} is taken"
        run = self.runs[made.id] = Course(made.id, made.name, dag.name)
        self._add(run, list(dag.jobs), state)
        return run

    def _add(self, run: Course, jobs: list[Job], state: str) -> None:
        self.touched.add(run)
        for job in jobs:
            run.seats[job.name] = Seat(run, job, state if job.enabled else "skipped", by_operator=not job.enabled)

    def _adopt_new_jobs(self) -> None:
        for dag in self.definitions.dags.values():
            run = self.newest(dag.name)
            new = [job for job in dag.jobs if run and job.name not in run.seats]
            if run and new:
                self._add(run, new, "queued" if run.state == "running" else "stopped")

    # ---- what a job is told ------------------------------------------------------------------------

    def rest(self, seat: Seat, state: str, *, by_operator: bool = False) -> None:
        """It has come to an end, or to a stop: whatever was wished is over."""
        seat.state, seat.by_operator = state, by_operator
        seat.forced, seat.again, seat.due, seat.due_wall = False, False, None, None
        self.touched.add(seat.run)

    def ask(self, seat: Seat, *, forced: bool = False) -> None:
        if seat.state not in WAITING:
            seat.state, seat.by_operator = "queued", False
        seat.forced, seat.tries, seat.due, seat.due_wall = forced, 0, None, None
        self.touched.add(seat.run)

    def halt(self, seat: Seat, *, again: bool = False, forced: bool = False) -> None:
        if seat.state in WAITING:
            self.rest(seat, "stopped")
            return
        seat.state, seat.again, seat.forced = "stopping", again, forced
        self.touched.add(seat.run)
        if seat.awaits_report:
            self._conclude(seat, "stopped", None)

    def report(self, seat: Seat, outcome: str | None) -> None:
        seat.reported = outcome or seat.reported
        if outcome is not None and seat.awaits_report:
            self._conclude(seat, outcome, None)

    # ---- attempts --------------------------------------------------------------------------------

    def _launch(self, launch: Launch) -> None:
        run = self.by_name(launch.run)
        assert run is not None, f"{launch.run} does not exist"
        seat, name = run.seats[launch.job.name], f"{launch.job.name} of {launch.run}"
        assert launch.job == seat.job, f"{name} starts with another definition"
        assert launch.attempt_id > self._last_attempt, f"the id of attempt {launch.attempt_id} is taken"
        assert launch.number == seat.attempts + 1, f"{name}: attempt {launch.number}, should be {seat.attempts + 1}"
        assert not self.leaving, f"{name} starts while leaving"
        obstacle = self._obstacle(seat)
        assert obstacle is None, f"{name} starts, and {obstacle}"
        seat.state, seat.attempts, seat.attempt = "running", launch.number, launch.attempt_id
        seat.reported, seat.due, seat.due_wall = None, None, None
        self._last_attempt = launch.attempt_id
        self.under_way[launch.attempt_id] = seat
        self.touched.add(run)
        if not seat.forced:
            exceeded = naive.full(seat.job, self._active_jobs(), self.definitions)
            assert not exceeded, f"{name} starts over {exceeded}"

    def _obstacle(self, seat: Seat) -> str | None:
        """What keeps it from starting, but for limits."""
        if seat.state != "queued":
            return f"it is {seat.state}"
        if not seat.job.enabled:
            return "it is disabled"
        if {seat.job.name, seat.job.dag} & self.holds.keys():
            return "it is held"
        if seat.run.gate is not None and not seat.run.gate_is_vague:
            return f"{seat.run.gate.name} is not gone"
        if seat.due is not None and seat.due > self.now.mono:
            return f"its retry is due in {seat.due - self.now.mono:g} s"
        stands = "met" if seat.forced else naive.needs_stand(seat.job, seat.run.seats)
        return None if stands == "met" else f"its needs are {stands}"

    def _active_jobs(self) -> list[Job]:
        return [seat.job for seat in self.under_way.values()]

    def _exited(self, attempt_id: int) -> None:
        seat = self.under_way.get(attempt_id)
        if seat is None or seat.awaits_report:
            return
        ending = seat.ending = self._truth[attempt_id]
        final = naive.outcome(seat.job, seat.reported, ending, seat.state == "stopping")
        if final is None:
            seat.fails_at = self._report_due(seat)
        else:
            self._conclude(seat, final, ending)

    def _report_due(self, seat: Seat) -> float:
        """Its timeout goes on while someone has yet to report."""
        ending = seat.ending
        if seat.job.timeout_s is None or ending is None:
            return NEVER
        assert ending.started_at is not None
        assert ending.finished_at is not None
        ran_s = ending.finished_at - ending.started_at if ending.duration_s is None else ending.duration_s
        return self.now.mono + seat.job.timeout_s - ran_s - max(0.0, self.now.wall - ending.finished_at)

    def _not_started(self, attempt_id: int) -> None:
        seat = self.under_way.get(attempt_id)
        if seat is None or seat.awaits_report:
            return
        del self.under_way[attempt_id]
        seat.attempts, seat.attempt = seat.attempts - 1, None
        self.touched.add(seat.run)
        if seat.state == "running":
            seat.state = "queued"
            return
        again, forced = seat.again, seat.forced
        self.rest(seat, "stopped")
        if again:
            self.ask(seat, forced=forced)

    def _conclude(self, seat: Seat, final: str, ending: Ending | None) -> None:
        """The attempt is over. `ending` None: a report, the lack of one, or a stop ended it."""
        assert seat.attempt is not None
        del self.under_way[seat.attempt]
        self.finals[seat.attempt] = final
        self.touched.add(seat.run)
        stopping, again, forced, tries = seat.state == "stopping", seat.again, seat.forced, seat.tries
        seat.fails_at = None
        if not stopping and naive.is_retried(seat.job, final, ending, tries):
            seat.state, seat.tries = "queued", tries + 1
            self._delay(seat, naive.retry_delay_s(seat.job, tries))
            return
        self.rest(seat, final)
        if again:
            self.ask(seat, forced=forced)
        elif final == "lost" and seat.job.retry_lost and not stopping:
            self.ask(seat, forced=forced)
            seat.tries = tries
            self._delay(seat, max(naive.LOST_DELAY_S, naive.retry_delay_s(seat.job, 0)))

    def _delay(self, seat: Seat, delay_s: float) -> None:
        if delay_s > 0:
            seat.due, seat.due_wall = self.now.mono + delay_s, self.now.wall + delay_s

    # ---- what follows ----------------------------------------------------------------------------

    def _pass_time(self) -> None:
        self.holds = {name: until for name, until in self.holds.items() if until is None or until > self.now.wall}
        for seat in list(self.under_way.values()):
            if seat.fails_at is not None and seat.fails_at <= self.now.mono:
                self._conclude(seat, "failed", None)
        for run in self.runs.values():
            for seat in run.seats.values():
                if seat.due is not None:
                    is_over = seat.due <= self.now.mono
                    seat.due_wall = None if is_over else self.now.wall + seat.due - self.now.mono
                    seat.due = None if is_over else seat.due

    def _settle(self) -> None:
        """Where waiting jobs stand. Upstreams come first in a run, so one look at each is enough."""
        for run in self.runs.values():
            if run.gate is not None and not run.gate.active:
                run.gate_is_vague = run.state != "running" and self.newest(run.dag) is not run
                run.gate = run.gate if run.gate_is_vague else None
                self.touched.add(run)
        for seat in [seat for run in self.touched for seat in run.seats.values()]:
            if seat.state in WAITING:
                stands = "met" if seat.forced else naive.needs_stand(seat.job, seat.run.seats)
                if stands == "impossible":
                    self.rest(seat, "skipped")
                else:
                    seat.state = "blocked" if stands == "blocked" else "queued"

    def _check_nobody_idles(self) -> None:
        """Nothing that may start and fits waits, but for those behind an earlier one at the same pool."""
        ready = [seat for seat in self._queued() if self._obstacle(seat) is None]
        active = self._active_jobs()
        exceeded = {seat: naive.full(seat.job, [*active, seat.job], self.definitions) for seat in ready}
        for seat in [each for each in ready if not each.run.gate_is_vague]:
            name = f"{seat.job.name} of {seat.run.name}"
            assert not seat.forced, f"{name} could start and does not, though forced"
            mates = [other for other in ready if other is not seat and other.job.pool == seat.job.pool]
            behind = any("pool" in exceeded[mate] and mate.job.priority >= seat.job.priority for mate in mates)
            assert exceeded[seat] or behind, f"{name} could start and does not"

    def _queued(self) -> Iterator[Seat]:
        for run in self.runs.values():
            for seat in run.seats.values():
                if seat.state == "queued":
                    yield seat
