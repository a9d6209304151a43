"""Worlds in which the daemon dies between any two steps, and the machine goes down under it.

`survive(seed, steps)` lives through one: daemons (`lives`) serve one after the other, shims and
processes (`machine`) go on without them, clients ask, repeat what was not answered, and give up. All
that is committed is held against `reference`; so is what each new daemon remembers. At last the faults
are turned off, and everything must come to its end.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from math import ceil
from random import Random
from typing import Any

from supervisor.core import commands
from supervisor.core.events import (
    Cause,
    Configured,
    Decision,
    Event,
    Exited,
    Halt,
    NotStarted,
    Now,
    Refusal,
    Reply,
    Requested,
    Signal,
)
from supervisor.core.model import ACTIVE, Definitions, Finish
from tests.core import dice
from tests.core.courses import NEVER
from tests.core.fake_store import FakeStore
from tests.core.lives import Answer, Asked, Daemon, Request
from tests.core.machine import Machine
from tests.core.reference import Reference

NOON = 1_795_435_200.0
#: Times are multiples of this: sums of them are exact.
TICK_S = 1 / 64
#: Steps in which a world that nobody disturbs any more must come to its end.
MAX_LAST_STEPS = 20_000
#: What a failure shows of the steps before it.
TRACE_STEPS, TRACE_CHARS = 40, 300


class World:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = Now(NOON, 64.0)
        self.disk_is_full = False
        self.store = FakeStore()
        self.machine = Machine(self.random, lambda: self.now)
        self.finishes = self.random.choice([dice.FINISHES, (Finish.REPORT,)])
        self.definitions = self._some_definitions()
        self.reference = Reference(self.definitions, self.machine.truth, self.now)
        self.trace: deque[str] = deque(maxlen=TRACE_STEPS)
        self.deaths: Counter[str] = Counter()  # by the last step that was done
        self.daemon: Daemon | None = None
        self.doomed_in: int | None = None  # steps of the daemon until it dies
        self.last_step = ""
        self._steps: Iterator[str] = iter(())
        self.temper = self._some_temper()
        self._token = 0
        self._open: dict[int, Request] = {}  # what clients have not been answered
        self._unanswered: list[Request] = []  # by a daemon that has died; may be asked again
        self._answered: list[Request] = []
        self._obeyed: dict[str, Answer] = {}  # requests that were committed, with their answers
        self._past: list[Event] = []

    def _some_temper(self) -> dict[Callable[[], None], float]:
        """What happens how often: in each world otherwise, so that each has its own troubles."""
        usual: dict[Callable[[], None], float] = {
            self.move_machine: 20,
            self.command_something: 8,
            self.interrupt_something: 4,
            self.report_something: 4,
            self.pass_time: 7,
            self.ask_again: 2,
            self.repeat_something: 2,
            self.reload: 1,
            self.fill_disk: 1,
        }
        return {action: weight * self.random.choice([0.2, 1, 3]) for action, weight in usual.items()}

    # ---- lives and deaths ------------------------------------------------------------------------

    def begin_life(self) -> None:
        wall = self._some_wall() if self.machine.has_faults else self.now.wall
        self.now = Now(wall, self.random.choice([64.0, 2.0**20, self.now.mono]))
        if self.machine.has_faults and self.random.random() < 0.3:
            self.definitions = self._some_definitions()
        self.machine.life += 1
        self.daemon = Daemon(self, self.store, self.machine, self.definitions)
        self.machine.hands = self.daemon.hands
        self._steps = self.daemon.live()
        if self.machine.has_faults:
            self.doomed_in = self.random.randint(1, self.random.choice([12, 400, 400]))
        self.trace.append(f"life {self.machine.life} begins, {self.now}")

    def _some_definitions(self) -> Definitions:
        return dice.definitions(self.random, self.finishes)

    def _some_wall(self) -> float:
        """Time has passed, or the clock was set, perhaps to a second in which a run began."""
        begun = [run.created_at for run in self.store.runs.values()]
        if begun and self.random.random() < 0.1:
            return self.random.choice(begun)
        return self.now.wall + self.random.choice([0.0, 3.0, 500.0, -100.0])

    def die(self) -> None:
        self.trace.append("the daemon dies")
        self.deaths[self.last_step] += 1
        self.daemon = self.machine.hands = None
        self._steps = iter(())
        self._unanswered = [request for request in self._open.values() if request.request_id is not None]
        self._open.clear()

    def go_down(self) -> None:
        """The machine, and the daemon with it."""
        if self.daemon is not None:
            self.die()
        self.trace.append("the machine goes down")
        under_way = self.reference.under_way.items()
        self.machine.reboot([attempt_id for attempt_id, seat in under_way if not seat.awaits_report])

    def step_daemon(self) -> None:
        if self.daemon is None:
            return
        step = next(self._steps, "")
        self.trace.append(f"the daemon {step or 'leaves'}")
        self.last_step = step or "leaves"
        if not step:
            self.die()
            return
        if step == "restores":
            self.reference.begin_life(self.now)
            self.reference.compare_memory(self.daemon.engine)
            last_id, kept = self.daemon.engine.last_event_id, len(self.store.journal)
            assert last_id == kept, f"the journal goes on from {last_id}, has {kept}"
        elif step == "finishes its turn":
            self.store.check_equals(self.daemon.engine)
            self._check_told(self.daemon)
        if self.doomed_in is not None:
            self.doomed_in -= 1
            if self.doomed_in <= 0:
                self.die()

    # ---- what may happen -------------------------------------------------------------------------

    def step(self) -> None:
        if self.daemon is None and self.random.random() < 0.4:
            self.begin_life()
        is_busy = self.daemon is not None and not (self.last_step == "waits" and self.daemon.is_idle)
        weights = [60 if is_busy else 1, *self.temper.values()]
        [action] = self.random.choices([self.step_daemon, *self.temper], weights)
        action()
        if self.random.random() < 0.0015:
            self.go_down()
        if self.random.random() < 0.1:
            self.disk_is_full = False

    def move_machine(self) -> None:
        moved = self.machine.move()
        if moved:
            self.trace.append(moved)
            self._check_processes()

    def pass_time(self) -> None:
        silent = [seat.fails_at for seat in self.reference.under_way.values() if seat.fails_at]
        due = min([*silent, self.daemon.engine.deadline() or NEVER if self.daemon else NEVER], default=NEVER)
        if due < NEVER and self.random.random() < 0.5:
            self._pass_until(due)
        else:
            step_s = self.random.choice([0.0, 0.25, 7.0, 60.0])
            self.now = Now(self.now.wall + step_s, self.now.mono + step_s)

    def _pass_until(self, due: float) -> None:
        step_s = max(0.0, ceil((due - self.now.mono) / TICK_S) * TICK_S)
        self.now = Now(self.now.wall + step_s, self.now.mono + step_s)

    def fill_disk(self) -> None:
        self.disk_is_full = self.daemon is not None

    def reload(self) -> None:
        if self.daemon is not None:
            self.definitions = self._some_definitions()
            self.daemon.mail.append(Configured(self.definitions, "ann"))

    def repeat_something(self) -> None:
        """Late, twice, or about nobody."""
        final = [event for event in self._past if getattr(event, "attempt_id", 0) not in self.reference.under_way]
        if self.daemon is not None:
            stranger = NotStarted(self.random.choice([0, -1, 10**9]), "nobody")
            self.daemon.mail.append(self.random.choice([*final[-20:], stranger]))

    # ---- clients -----------------------------------------------------------------------------------

    def ask(self, command: commands.Command, request_id: str | None = None) -> None:
        if self.daemon is not None:
            self._token += 1
            request = self._open[self._token] = Request(self._token, command, request_id)
            self.daemon.mail.append(request)
            self.trace.append(f"somebody asks {self._token}: {command}")

    def command_something(self) -> None:
        runs = [run.name for run in self.reference.runs.values()]
        run = self.reference.by_name(self.random.choice(runs)) if runs and self.random.random() < 0.1 else None
        if run is not None:
            known = [run.dag, *run.seats]
        else:
            dags = self.definitions.dags.values()
            known = [*self.definitions.dags, *(job.name for dag in dags for job in dag.jobs)]
        held = tuple(self.reference.holds)
        command = dice.command(self.random, known, held, self.now.wall, run.name if run else None)
        self.ask(command, f"request {self._token}" if self.random.random() < 0.5 else None)

    def interrupt_something(self) -> None:
        """Somebody meddles with a job that runs."""
        if self.reference.under_way:
            seat = self.random.choice(list(self.reference.under_way.values()))
            target: dict[str, Any] = {"names": (seat.job.name,), "run": seat.run.name}
            kind = self.random.random()
            self.ask(commands.Restart(**target) if kind < 0.3 else commands.Stop(**target, now=kind > 0.8))

    def report_something(self) -> None:
        seats = [seat for run in self.reference.runs.values() for seat in run.seats.values() if seat.attempts]
        active = [seat for seat in seats if seat.state in ("running", "stopping")]
        expected = [seat for seat in active if seat.job.finish is Finish.REPORT]
        if seats:
            likely = [each for each in (expected, active) if each and self.random.random() < 0.7]
            seat = self.random.choice([*likely, seats][0])
            outcome = self.random.choice(["success", "success", "failed", "data"])
            self.ask(commands.Report(outcome=outcome, job=seat.job.name, run=seat.run.name, data=10))

    def ask_again(self) -> None:
        """Somebody asks once more, with the same id: most of them had no answer, or have none yet."""
        known = [*self._unanswered, *self._open.values(), *self._answered[-2:]]
        known = [request for request in known if request.request_id is not None]
        if known and self.daemon is not None:
            request = self.random.choice(known)
            self.ask(request.command, request.request_id)

    def hear_answer(self, token: int, answer: Answer) -> None:
        request = self._open.pop(token)
        if isinstance(answer, Refusal) and answer.kind == "storage":
            return
        committed = self._obeyed.get(_key(request))
        assert committed is not None, f"{request} is answered before it is committed"
        assert committed == answer, f"{request} is answered {answer}, was {committed}"
        self._answered.append(request)

    # ---- commits -----------------------------------------------------------------------------------

    def commit(self, asked: list[Asked], answers: dict[str, Answer]) -> None:
        """One transaction."""
        assert self.daemon is not None
        is_paused = self.daemon.engine.attempts.paused
        decided = [decision for _, _, decisions in asked for decision in decisions]
        assert not (decided and self.disk_is_full)
        self.store.commit(decided)
        self.store.answers |= answers
        for event, now, decisions in asked:
            self.trace.append(f"… commits {event}")
            if isinstance(event, Requested):
                self._note_obeyed(event, decisions)
            if isinstance(event, Exited | NotStarted):
                self._past.append(event)
            self.reference.take_in(event, now, decisions, is_paused=is_paused)
        self.reference.compare(self.store)
        self._check_processes()
        risk = 0.3 if any(isinstance(each, Signal) for each in decided) else 0.1
        if self.doomed_in is not None and self.random.random() < risk:
            self.doomed_in = self.random.choice([1, 1, 2, 3])  # not all that was decided will be done

    def _note_obeyed(self, event: Requested, decisions: list[Decision]) -> None:
        key = _key(self._open[event.token])
        assert key not in self._obeyed, f"{key} is obeyed twice"
        replies = [each for each in decisions if isinstance(each, Reply)]
        [self._obeyed[key]] = [reply.result for reply in replies if reply.token == event.token]

    # ---- what must hold ------------------------------------------------------------------------------

    def _check_processes(self) -> None:
        """Whatever runs is an attempt that is recorded as under way, and as nothing else."""
        for attempt_id, shim in self.machine.shims.items():
            if shim.stage == "runs":
                assert attempt_id in self.store.attempts, f"attempt {attempt_id} runs without a record"
                assert self.store.attempts[attempt_id].state in ACTIVE, f"attempt {attempt_id} is final and runs"

    def _check_told(self, daemon: Daemon) -> None:
        """Who shall stop was told so, by this daemon or one before it."""
        for attempt_id, seat in self.reference.under_way.items():
            if attempt_id not in daemon.hands.busy or attempt_id not in self.machine.shims:
                continue
            halt = self.machine.shims[attempt_id].halt
            if seat.state == "stopping":
                assert halt in (Halt.STOP, Halt.KILL), f"attempt {attempt_id} was not told to stop"
            elif seat.reported is not None and seat.job.finish is Finish.REPORT:
                assert halt is not None, f"attempt {attempt_id} has reported, and was not told to end"

    # ---- the end -------------------------------------------------------------------------------------

    def let_everything_end(self) -> None:
        """No more faults. Holds are released, reports come, time passes."""
        self.machine.has_faults, self.disk_is_full, self.doomed_in = False, False, None
        for _ in range(MAX_LAST_STEPS):
            if self.daemon is None:
                self.begin_life()
            self.move_machine()
            self.step_daemon()
            is_idle = self.daemon and self.last_step == "waits" and self.daemon.is_idle
            if self.daemon and is_idle and not self.machine.shims and not self._push_on(self.daemon):
                return
        raise AssertionError("it does not come to its end")

    def _push_on(self, daemon: Daemon) -> bool:
        """Do what it waits for. False: it waits for nothing."""
        due = daemon.engine.deadline()
        silent = [seat for seat in self.reference.under_way.values() if seat.awaits_report]
        if self.reference.holds:
            self.ask(commands.Release(names=tuple(self.reference.holds)))
        elif silent:
            self.ask(commands.Report(outcome="success", job=silent[0].job.name, run=silent[0].run.name))
        elif due is not None:
            self._pass_until(due)
        else:
            return False
        return True

    def check_the_end(self) -> None:
        """Everything is over, told once and truly; nothing is left lying about."""
        self.reference.compare(self.store, thoroughly=True)
        assert not self.reference.under_way, f"attempts {list(self.reference.under_way)} are still under way"
        running = [run.name for run in self.reference.runs.values() if run.state == "running"]
        assert not running, f"{running} did not end"
        assert not self.machine.records, f"records of attempts {list(self.machine.records)} are left"
        for attempt_id, attempt in self.store.attempts.items():
            assert attempt.state == self.reference.finals[attempt_id]
            is_lost = self.machine.truth[attempt_id].cause is Cause.LOST and attempt.reported is None
            assert (attempt.state == "lost") == is_lost, f"attempt {attempt_id} is {attempt.state}"
        unknown = self.machine.execs.keys() - self.store.attempts.keys()
        assert not unknown, f"attempts {unknown} ran, and nobody knows of them"


def _key(request: Request) -> str:
    return request.request_id or f"token {request.token}"


def survive(seed: int, steps: int) -> Counter[str]:
    """Live through one world; after which steps the daemon died, and how often.

    Raises AssertionError (or whatever the engine raises), with the last steps as a note.
    """
    world = World(seed)
    try:
        for _ in range(steps):
            world.step()
        world.let_everything_end()
        world.die()
        world.let_everything_end()
        world.check_the_end()
    except Exception as error:
        error.add_note("\n".join(line[:TRACE_CHARS] for line in world.trace))
        raise
    return world.deaths
