"""What truly happened in a simulation, and what must hold of it after every step.

Truth sees only what goes into the engine and comes out: events, decisions, records. It folds the
journal, keeps its own list of living processes, holds, gates and waits, and asks `naive` for the rules.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from supervisor.core import commands
from supervisor.core.engine import Engine
from supervisor.core.events import (
    Configured,
    Decision,
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
    SaveRun,
    Signal,
)
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import ACTIVE, AT_REST, Dag, Definitions, Job, JournalEntry, Node, State
from tests.core import naive
from tests.core.fake_store import FakeStore
from tests.core.naive import Fact

JobKey = tuple[str, str]  # run's name, job


@dataclass
class Process:
    """A launched attempt whose end the engine has not recorded. `halt`: how it was told to end in this life."""

    launch: Launch
    began: bool = False
    halt: Halt | None = None

    @property
    def key(self) -> JobKey:
        return self.launch.run, self.launch.job.name


@dataclass
class Waiting:
    """An open wait: for a run, or for a job in it."""

    run: str
    job: str | None
    until: float | None  # monotonic


@dataclass
class Truth:
    store: FakeStore
    definitions: Definitions
    now: Now
    dags: dict[str, Dag] = field(default_factory=dict)  # run -> as it is defined
    facts: dict[str, dict[str, Fact]] = field(default_factory=dict)  # run -> job -> what the journal says
    told_runs: dict[str, str] = field(default_factory=dict)  # run -> state, as noted
    processes: dict[int, Process] = field(default_factory=dict)  # attempt id ->
    active: dict[JobKey, Job] = field(default_factory=dict)  # jobs that hold slots
    launched: set[int] = field(default_factory=set)
    numbers: dict[JobKey, int] = field(default_factory=lambda: defaultdict(int))  # attempts that were consumed
    tries: dict[JobKey, int] = field(default_factory=lambda: defaultdict(int))  # automatic retries since asked
    due: dict[JobKey, Now] = field(default_factory=dict)  # not before, because of a retry
    forced: set[JobKey] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    gates: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # run -> attempts to be gone first
    waits: dict[int, Waiting] = field(default_factory=dict)
    leaving: str = ""  # "at once", "when done"

    # ---- one turn ------------------------------------------------------------------------------

    def take_in(self, event: Event, decisions: list[Decision]) -> None:
        """Check a turn's decisions in their order, and commit them. The world performs them afterwards."""
        if isinstance(event, Configured):
            self.definitions = event.definitions
        self._learn_runs(event, decisions)
        self._learn_command(event, decisions)
        ending = self._expect_ending(event)
        recorded = {decision.attempt.id for decision in decisions if isinstance(decision, SaveAttempt)}
        for decision in decisions:
            if isinstance(decision, Journal):
                self._fold(decision.entry, ending)
            elif isinstance(decision, Launch):
                assert decision.attempt_id in recorded, "launched without a record"
                self._check_launch(decision)
        self.store.commit(decisions)
        if ending is not None:
            self._check_ending(ending, decisions)
        self._check_replies(event, decisions)

    def perform(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Launch():
                    self.processes[decision.attempt_id] = Process(decision)
                case Signal(attempt_id, halt):
                    assert attempt_id in self.processes, f"attempt {attempt_id} is signalled, and has no process"
                    self.processes[attempt_id].halt = halt

    def begin_life(self, now: Now) -> None:
        """The daemon was ended and another one begins; its monotonic clock began anew, so delays go by the record."""
        self.now, self.leaving, self.waits, self.due = now, "", {}, {}
        for process in self.processes.values():
            process.halt = None
        for node in self.store.nodes.values():
            if node.retry_at is not None:
                key = self.store.runs[node.run_id].name, node.job
                longest_s = max(
                    naive.LOST_DELAY_S,
                    *(naive.retry_delay_s(self._job(key), tries) for tries in (0, max(0, node.tries - 1))),
                )
                self._delay(key, min(max(0.0, node.retry_at - now.wall), longest_s))

    def _learn_runs(self, event: Event, decisions: list[Decision]) -> None:
        """New runs; one made by a restart has to wait for the processes of the run that it replaces."""
        for decision in decisions:
            if not isinstance(decision, SaveRun):
                continue
            name, dag = decision.run.name, decision.run.dag
            if name not in self.dags and isinstance(event, Requested) and isinstance(event.command, commands.Restart):
                of_dag = [run for run, each in self.dags.items() if each.name == dag.name]
                older = event.command.run or (of_dag[-1] if of_dag else "")
                living = {attempt_id for attempt_id, each in self.processes.items() if each.key[0] == older}
                self.gates[name] = living | self.gates[older]
            self.dags[name] = dag

    def _job(self, key: JobKey) -> Job:
        return next(job for job in self.dags[key[0]].jobs if job.name == key[1])

    # ---- the journal ---------------------------------------------------------------------------

    def _fold(self, entry: JournalEntry, ending: Ending | None) -> None:
        if entry.kind in ("held", "released"):
            (self.held.add if entry.kind == "held" else self.held.discard)(entry.job or entry.dag or "")
        if entry.run is None:
            return
        if entry.job is None:
            self._fold_run(entry.run, entry.kind)
        elif entry.kind in set(State):
            self._fold_job((entry.run, entry.job), entry, ending)
        elif entry.kind == "retrying":
            job, key = self._job((entry.run, entry.job)), (entry.run, entry.job)
            self._delay(key, naive.retry_delay_s(job, self.tries[key]))
            self.tries[key] += 1

    def _fold_run(self, run: str, kind: str) -> None:
        if kind in ("run_started", "run_created"):
            state = "queued" if kind == "run_started" else "stopped"
            self.facts[run] = {job.name: Fact(state) for job in self.dags[run].jobs}
            self.told_runs[run] = "running"
        else:
            self.told_runs[run] = kind.removeprefix("run_").replace("resumed", "running")

    def _fold_job(self, key: JobKey, entry: JournalEntry, ending: Ending | None) -> None:
        facts = self.facts[key[0]]
        before = facts.get(key[1], Fact()).state
        facts[key[1]] = Fact(entry.kind, entry.by)
        is_ending = ending is not None and ending.key == key
        if entry.kind == "skipped" and entry.by is None and before in ("queued", "blocked"):
            stands = naive.needs_stand(self._job(key), facts)
            assert stands == "impossible", f"{key} is skipped, its needs are {stands}"
        if entry.kind not in ("running", "stopping"):
            self.active.pop(key, None)
        if entry.kind in AT_REST and not (is_ending and ending and ending.stays_forced):
            self.forced.discard(key)
        if entry.kind == "queued" and before in AT_REST:
            if is_ending and ending and ending.is_repeated:
                self._delay(key, max(naive.LOST_DELAY_S, self._job(key).retry_delay_s))
            else:
                self._note_asked(key)

    def _delay(self, key: JobKey, delay_s: float) -> None:
        self.due[key] = Now(self.now.wall + delay_s, self.now.mono + delay_s)

    def _note_asked(self, key: JobKey) -> None:
        self.tries[key] = 0
        self.due.pop(key, None)

    # ---- launches ------------------------------------------------------------------------------

    def _check_launch(self, launch: Launch) -> None:
        job, key = launch.job, (launch.run, launch.job.name)
        assert launch.attempt_id not in self.launched, f"attempt {launch.attempt_id} is launched twice"
        self.launched.add(launch.attempt_id)
        self.numbers[key] += 1
        assert launch.number == self.numbers[key], f"{key}: attempt {launch.number}, should be {self.numbers[key]}"
        assert job == self._job(key), f"{key} starts with another definition"
        assert not self.leaving, f"{key} starts while leaving"
        assert job.enabled, f"{key} is disabled"
        assert not {job.name, job.dag} & self.held, f"{key} starts though held"
        older = self.gates[launch.run] & self.processes.keys()
        assert not older, f"{key} starts before attempts {older} of the older run are gone"
        self.active[key] = job
        if key not in self.forced:
            stands = naive.needs_stand(job, self.facts[launch.run])
            assert stands == "met", f"{key} starts, its needs are {stands}"
            early_s = self.due[key].mono - self.now.mono if key in self.due else 0.0
            assert early_s <= 1e-6, f"{key} starts {early_s:g} s before its retry is due"
            full = naive.full(job, list(self.active.values()), self.definitions)
            assert not full, f"{key} starts over {full}"
        self.due.pop(key, None)

    # ---- endings -------------------------------------------------------------------------------

    def _expect_ending(self, event: Event) -> Ending | None:
        """What must become of the attempt that this event is about; None if there is none."""
        process = None
        if isinstance(event, Exited | NotStarted):
            process = self.processes.pop(event.attempt_id, None)
        if process is None or not isinstance(event, Exited | NotStarted):
            return None
        key, job, attempt = process.key, process.launch.job, self.store.attempts[event.attempt_id]
        node = self.store.nodes[attempt.run_id, job.name]
        stopping = self.facts[key[0]][key[1]].state == "stopping"
        stays_forced = node.again and node.forced
        if isinstance(event, NotStarted):
            self.numbers[key] -= 1
            told = ["queued"] if not stopping else ["stopped", "queued"] if node.again else ["stopped"]
            return Ending(key, event.attempt_id, None, told, stays_forced)
        final = naive.outcome(job, attempt.reported, event.ending, stopping)
        if final is None:
            return Ending(key, event.attempt_id, "running", [], stays_forced, may_be_late=job.timeout_s is not None)
        if not stopping and naive.is_retried(job, final, event.ending, self.tries[key]):
            return Ending(key, event.attempt_id, final, ["queued", "retrying"], True)
        if not stopping and final == "lost" and job.retry_lost:
            return Ending(key, event.attempt_id, final, ["lost", "queued"], True, is_repeated=True)
        return Ending(key, event.attempt_id, final, [final, "queued"] if node.again else [final], stays_forced)

    def _check_ending(self, ending: Ending, decisions: list[Decision]) -> None:
        entries = [decision.entry for decision in decisions if isinstance(decision, Journal)]
        told = [entry.kind for entry in entries if (entry.run, entry.job) == ending.key]
        told = [kind for kind in told if kind not in ("start_refused", "running")]
        expected = ending.told
        if ending.may_be_late:
            return
        assert told[: len(expected)] == expected, f"{ending.key}: expected {expected}, told {told}"
        rest = told[len(expected) :]
        may_follow = {"blocked", "skipped"} if "queued" in expected else set()
        assert may_follow.issuperset(rest), f"{ending.key}: expected {expected}, told {told}"
        attempt = self.store.attempts.get(ending.attempt_id)
        state = None if attempt is None else str(attempt.state)
        assert state == ending.final, f"attempt {ending.attempt_id} is {state}, should be {ending.final}"

    # ---- commands ------------------------------------------------------------------------------

    def _learn_command(self, event: Event, decisions: list[Decision]) -> None:
        """What an acknowledged command means, before anything starts because of it."""
        answer = self._answer_to(event, decisions)
        if answer is None or not isinstance(event, Requested):
            return
        command = event.command
        if isinstance(command, commands.Shutdown):
            at_once = not (command.stop_jobs or command.drain) or self.leaving == "at once"
            self.leaving = "at once" if at_once else "when done"
        is_forced = isinstance(command, commands.Start) and command.force
        for change in answer["changed"]:
            if change["to"] == "queued":
                key = change["run"], change["job"]
                if change["from"] in ("queued", "blocked"):
                    self._note_asked(key)
                if is_forced:
                    self.forced.add(key)

    def _answer_to(self, event: Event, decisions: list[Decision]) -> dict[str, Any] | None:
        """The answer to a command that was carried out."""
        if not isinstance(event, Requested) or isinstance(event.command, commands.Wait) or event.command.dry_run:
            return None
        [answer] = [each.result for each in decisions if isinstance(each, Reply) and each.token == event.token]
        return None if isinstance(answer, Refusal) else answer

    def _check_replies(self, event: Event, decisions: list[Decision]) -> None:
        replies = [decision for decision in decisions if isinstance(decision, Reply)]
        assert decisions[len(decisions) - len(replies) :] == replies, "replies come last"
        for reply in replies:
            waiting = self.waits.pop(reply.token, None)
            if waiting is not None and isinstance(reply.result, Refusal):
                assert waiting.until is not None, f"{waiting} was given up"
                assert waiting.until <= self.now.mono, f"{waiting} was given up too early"
            elif waiting is not None:
                self.check_is_over(waiting)
        if isinstance(event, Requested) and isinstance(event.command, commands.Targeted) and event.command.dry_run:
            assert len(decisions) == 1, f"a dry run decided {decisions}"
        answer = self._answer_to(event, decisions)
        for change in answer["changed"] if answer else ():
            if "run" in change and isinstance(event, Requested) and not isinstance(event.command, commands.Report):
                self._check_change(change["run"], change["job"], change["to"])

    def _check_change(self, run: str, job: str, to: str) -> None:
        """What an answer says has been changed was changed, as far as it can be at once."""
        state = self.facts[run][job].state
        right = ("queued", "running", "blocked", "skipped", "stopping") if to == "queued" else (to,)
        assert state in right, f"{job} of {run} is {state}, was answered {to}"

    def check_is_over(self, waiting: Waiting) -> None:
        assert self._is_over(waiting), f"{waiting} was answered too early"

    def _is_over(self, waiting: Waiting) -> bool:
        facts = self.facts[waiting.run]
        over = naive.run_state([fact.state for fact in facts.values()]) != "running"
        return over or (waiting.job is not None and facts[waiting.job].state in AT_REST)

    # ---- after every step ------------------------------------------------------------------------

    def check(self, engine: Engine, decisions: list[Decision]) -> None:
        self.store.check_equals(engine)
        assert set(engine.under_way()) == set(self.processes), "the engine looks for other processes than there are"
        for waiting in self.waits.values():
            assert not self._is_over(waiting), f"{waiting} was not answered"
            assert waiting.until is None or waiting.until > self.now.mono, f"{waiting} was not given up"
        done = self.leaving == "at once" or (self.leaving and not self.processes)
        assert bool(done) == any(isinstance(each, Leave) for each in decisions), f"leaving: {self.leaving}"
        for live_run in engine.registry:
            self._check_run(live_run)
        if not self.leaving and not engine.attempts.paused:
            self._check_nobody_idles(engine)
        for attempt_id, process in self.processes.items():
            run, job = process.key
            if self.facts[run][job].state == "stopping":
                assert process.halt in (Halt.STOP, Halt.KILL), f"attempt {attempt_id} was not told to stop"

    def _check_run(self, live_run: LiveRun) -> None:
        name, facts = live_run.run.name, self.facts[live_run.run.name]
        state = naive.run_state([fact.state for fact in facts.values()])
        assert live_run.state == state, f"{name} is {live_run.state}, should be {state}"
        assert self.told_runs[name] == state, f"{name} is {state}, told {self.told_runs[name]}"
        assert (live_run.run.finished_at is None) == (state == "running")
        for live in live_run.nodes.values():
            assert facts[live.job.name].state == live.state
            self._check_node((name, live.job.name), live, live.node)

    def _check_node(self, key: JobKey, live: LiveNode, node: Node) -> None:
        facts = self.facts[key[0]]
        assert node.tries == self.tries[key] <= live.job.retries, f"{key}: {node.tries} retries, told {self.tries[key]}"
        assert (live.attempt is not None and live.attempt.state in ACTIVE) == (node.state in ACTIVE)
        if facts[key[1]].state in ("queued", "blocked"):
            assert node.forced == (key in self.forced), f"{key} is forced: {node.forced}"
            stands = "met" if node.forced else naive.needs_stand(live.job, facts)
            right = {"met": "queued", "pending": "queued", "blocked": "blocked"}.get(stands)
            assert node.state == right, f"{key} is {node.state}, its needs are {stands}"

    def _check_nobody_idles(self, engine: Engine) -> None:
        """Nothing that may start and fits waits, but for those behind an earlier one at the same pool."""
        active = list(self.active.values())
        ready = [live for each in engine.registry for live in each.nodes.values() if self._may_start(live)]
        full = {live: naive.full(live.job, [*active, live.job], self.definitions) for live in ready}
        for live in ready:
            name = f"{live.job.name} of {live.run.run.name}"
            assert not live.node.forced, f"{name} could start and does not, though forced"
            behind = any(
                "pool" in full[other] and other.job.pool == live.job.pool and other.job.priority >= live.job.priority
                for other in ready
                if other is not live
            )
            assert full[live] or behind, f"{name} could start and does not"

    def _may_start(self, live: LiveNode) -> bool:
        run, name = live.run.run.name, live.job.name
        facts = self.facts[run]
        return (
            facts[name].state == "queued"
            and (live.node.forced or naive.needs_stand(live.job, facts) == "met")
            and not {name, live.job.dag} & self.held
            and ((run, name) not in self.due or self.due[run, name].mono <= self.now.mono)
            and not self._has_closed_gate(live.run)
        )

    def _has_closed_gate(self, live_run: LiveRun) -> bool:
        """It waits for an older run in which something is under way, be it something started there meanwhile."""
        after = live_run.run.after
        return after is not None and any(run == self.store.runs[after].name for run, _ in self.active)


@dataclass
class Ending:
    """What is expected of an attempt that ends: its final state (None: its record is gone), the states told.

    `stays_forced`: if it starts again, then as forced as it was. `is_repeated`: it starts again because its
    outcome was lost. `may_be_late`: no report has come, and its time may be up.
    """

    key: JobKey
    attempt_id: int
    final: str | None
    told: list[str]
    stays_forced: bool
    is_repeated: bool = False
    may_be_late: bool = False
