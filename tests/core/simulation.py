"""A seeded world around the engine: random dags, outcomes, commands, reloads, clocks, crashes.

`simulate(seed, steps)` raises as soon as a promise is broken (see `truth`), and at last lets
everything end. Time is simulated, so a world lives fast.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from supervisor.core import commands
from supervisor.core.engine import Engine
from supervisor.core.events import (
    Booted,
    Cause,
    Configured,
    Decision,
    Dropped,
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
    Started,
    TimeReached,
)
from supervisor.core.model import Snapshot
from tests.core import dice
from tests.core.fake_store import FakeStore
from tests.core.truth import Process, Truth, Waiting

NOON = 1_795_435_200.0
#: Steps in which a world that nobody disturbs any more must come to its end.
MAX_LAST_STEPS = 2000


class World:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.store = FakeStore()
        self.truth = Truth(self.store, dice.definitions(self.random), Now(NOON, 50.0))
        self.engine = self._engine(Snapshot())
        self.token = 0
        self.past: list[Event] = []  # told before; may be told again
        self.give(Booted())

    # ---- the daemon ----------------------------------------------------------------------------

    def _engine(self, snapshot: Snapshot) -> Engine:
        engine = Engine(self.truth.definitions, self.store.has_run)
        engine.restore(snapshot, self.truth.now)
        return engine

    def give(self, event: Event) -> None:
        """One turn: handle, commit, perform; sometimes the daemon dies in between."""
        fate = self.random.random()
        if fate < 0.004:  # before the commit: whoever told it will tell it again, unless it was a command
            self.engine.handle(event, self.truth.now)
            self._begin_anew()
            if not isinstance(event, Requested | Dropped | Booted):
                self.give(event)
            return
        decisions = self.engine.handle(event, self.truth.now)
        self.truth.take_in(event, decisions)
        self._note_wait(event, decisions)
        if fate < 0.008:  # before anything was done
            never = [decision.attempt_id for decision in decisions if isinstance(decision, Launch)]
            self.truth.perform([decision for decision in decisions if isinstance(decision, Launch)])
            self._begin_anew()
            for attempt_id in never:
                if attempt_id in self.truth.processes:
                    self.give(NotStarted(attempt_id, "the daemon died before it started"))
            return
        self.truth.perform(decisions)
        self.truth.check(self.engine, decisions)
        if fate < 0.012 or any(isinstance(decision, Leave) for decision in decisions):
            self._begin_anew()

    def _begin_anew(self) -> None:
        wall = self.truth.now.wall + self.random.choice([0.0, 3.0, 500.0, -100.0])
        self.truth.begin_life(Now(wall, self.random.choice([1.0, 1e6])))
        if self.random.random() < 0.3:
            self.truth.definitions = dice.definitions(self.random)
        self.engine = self._engine(self.store.snapshot())
        self.give(Booted())

    def _note_wait(self, event: Event, decisions: list[Decision]) -> None:
        """A wait that was not answered at once is open."""
        if not isinstance(event, Requested) or not isinstance(event.command, commands.Wait):
            return
        answers = [each.result for each in decisions if isinstance(each, Reply) and each.token == event.token]
        if any(isinstance(answer, Refusal) for answer in answers):
            return
        [name] = event.command.names
        live_run = self.engine.registry.newest(name) or self.engine.registry.newest(self.engine.job_dags[name])
        assert live_run is not None
        until = None if event.command.timeout_s is None else self.truth.now.mono + event.command.timeout_s
        waiting = Waiting(live_run.run.name, None if name == live_run.dag.name else name, until)
        if answers:
            self.truth.check_is_over(waiting)
        else:
            self.truth.waits[event.token] = waiting

    # ---- what may happen -----------------------------------------------------------------------

    def step(self) -> None:
        actions: list[tuple[int, Callable[[], None]]] = [
            (40, self.end_one),
            (15, self.begin_one),
            (12, self.pass_time),
            (24, self.command_something),
            (6, self.report_something),
            (4, self.refuse_one),
            (6, self.repeat_something),
            (2, self.reload),
            (4, self.wait_or_drop),
            (2, self.forget_or_recall),
        ]
        [action] = self.random.choices([each for _, each in actions], [weight for weight, _ in actions])
        action()

    def any_process(self) -> Process | None:
        return self.random.choice(list(self.truth.processes.values())) if self.truth.processes else None

    def begin_one(self) -> None:
        process = self.any_process()
        if process is not None:
            process.began = True
            self.tell(Started(process.launch.attempt_id, 4711, self.truth.now.wall))

    def end_one(self) -> None:
        process = self.any_process()
        if process is None:
            self.random.choice([self.start_all, self.pass_time])()
        else:
            process.began = True
            self.tell(Exited(process.launch.attempt_id, self._ending(process)))

    def start_all(self) -> None:
        self.ask(commands.Start())

    def _ending(self, process: Process) -> Ending:
        choose = self.random
        if process.halt is not None and choose.random() < 0.7:
            return Ending(cause=Cause.STOPPED, signal=15, duration_s=1.0)
        kind = choose.random()
        if kind < 0.6:
            return Ending(cause=Cause.EXITED, exit_code=0, duration_s=choose.choice([1.0, None]))
        if kind < 0.85:
            return Ending(cause=Cause.EXITED, exit_code=choose.choice([1, 3, 75]), duration_s=1.0)
        cause = choose.choice([Cause.TIMEOUT, Cause.UNSTARTABLE, Cause.LOST, Cause.EXITED, Cause.STOPPED])
        return Ending(cause=cause, signal=9, text="something happened")

    def refuse_one(self) -> None:
        process = self.any_process()
        if process is not None and not process.began:
            self.tell(NotStarted(process.launch.attempt_id, "fork: Resource temporarily unavailable"))

    def tell(self, event: Event) -> None:
        self.past.append(event)
        self.give(event)

    def repeat_something(self) -> None:
        """Late, twice, or about nobody."""
        ended = [event for event in self.past if getattr(event, "attempt_id", 0) not in self.truth.processes]
        stranger = NotStarted(self.random.choice([0, -1, 10**9]), "nobody")
        self.give(self.random.choice([*ended[-20:], stranger]))

    def pass_time(self) -> None:
        now, due = self.truth.now, self.engine.deadline()
        step_s = self.random.choice([0.0, 0.2, 7.0, 60.0])
        if due is not None and self.random.random() < 0.5:
            step_s = max(0.0, due - now.mono)
        jump_s = self.random.choice([0.0, 0.0, 0.0, 1000.0, -1000.0]) if self.random.random() < 0.1 else 0.0
        self.truth.now = Now(now.wall + step_s + jump_s, now.mono + step_s)
        self.give(TimeReached())

    def reload(self) -> None:
        self.give(Configured(dice.definitions(self.random)))

    def forget_or_recall(self) -> None:
        self.engine.forget_finished()
        old = [run for run in self.store.runs.values() if self.engine.registry.by_id(run.id) is None]
        if old:
            run = self.random.choice(old)
            self.engine.restore(self.store.snapshot_of(run.name), self.truth.now)
            self.ask(self._command(run.name))

    # ---- commands ------------------------------------------------------------------------------

    def ask(self, command: commands.Command) -> None:
        self.token += 1
        self.give(Requested(self.token, command, "ann"))

    def command_something(self) -> None:
        runs = [live_run.run.name for live_run in self.engine.registry]
        self.ask(self._command(self.random.choice(runs) if runs and self.random.random() < 0.1 else None))

    def _known(self, run: str | None = None) -> list[str]:
        live_run = self.engine.registry.by_name(run) if run else None
        if live_run is not None:
            return [live_run.dag.name, *live_run.nodes]
        return [*self.truth.definitions.dags, *self.engine.job_dags]

    def _command(self, run: str | None) -> commands.Command:
        return dice.command(self.random, self._known(run), tuple(self.engine.holds), self.truth.now.wall, run)

    def report_something(self) -> None:
        running = [live for each in self.engine.registry for live in each.nodes.values() if live.node.attempts]
        if running:
            live = self.random.choice(running)
            outcome = self.random.choice(["success", "success", "failed", "data"])
            data = self.random.choice([None, 10])
            self.ask(commands.Report(outcome=outcome, job=live.job.name, run=live.run.run.name, data=data))

    def wait_or_drop(self) -> None:
        if self.truth.waits and self.random.random() < 0.3:
            token = self.random.choice(list(self.truth.waits))
            del self.truth.waits[token]
            self.give(Dropped(token))
            return
        names = dice.names(self.random, self._known())[:1]
        if names:
            self.ask(commands.Wait(names=names, timeout_s=self.random.choice([None, 30.0])))

    # ---- the end -------------------------------------------------------------------------------

    def let_everything_end(self) -> None:
        """No more commands but releases; every process ends well, every report comes, time passes."""
        while self.engine.holds:
            self.ask(commands.Release(names=tuple(self.engine.holds)))
        for _ in range(MAX_LAST_STEPS):
            process = self.any_process()
            silent = [live for live in self.engine.attempts.under_way.values() if live.awaits_report]
            due = self.engine.deadline()
            if process is not None:
                self.give(Exited(process.launch.attempt_id, Ending(cause=Cause.EXITED, exit_code=0, duration_s=1.0)))
            elif silent:
                self.ask(commands.Report(outcome="success", job=silent[0].job.name, run=silent[0].run.run.name))
            elif due is not None:
                self.truth.now = Now(self.truth.now.wall + max(0.0, due - self.truth.now.mono), due)
                self.give(TimeReached())
            else:
                break
        open_runs = [run.name for run in self.store.runs.values() if run.finished_at is None]
        assert not open_runs, f"{open_runs} did not end"
        assert not self.truth.waits, "someone still waits"


def simulate(seed: int, steps: int) -> None:
    """Live through one world. Raises AssertionError (or whatever the engine raises) when something is wrong."""
    world = World(seed)
    for _ in range(steps):
        world.step()
    world.let_everything_end()
