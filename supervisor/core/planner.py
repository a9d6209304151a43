"""What an operator's command means: a plan of changes first, then (unless it is a dry run) the changes.

Called by the engine with itself; changes jobs by the engine's verbs only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

from supervisor.core import commands
from supervisor.core.events import Decision, DeleteHold, Halt, Leave, Refusal, Requested, SaveAttempt, SaveHold, Signal
from supervisor.core.graph import Standing
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import ACTIVE, WAITING, Finish, Hold, Outcome, State, Trigger
from supervisor.core.transitions import TRANSITIONS, Move, Verdict

if TYPE_CHECKING:
    from supervisor.core.engine import Engine

#: JSON-RPC's code for parameters that make no sense.
WRONG_PARAMS = -32602

Answer = dict[str, Any]


class _RefusedError(Exception):
    """Carries a refusal out of the planning; nothing has changed."""

    def __init__(self, kind: str, message: str, hint: str = "", code: int = 1) -> None:
        self.refusal = Refusal(code, kind, message, hint)


@dataclass(slots=True)
class Target:
    """Names resolved to one dag: its run (if there is one) and the jobs meant; `names` empty = all of it."""

    dag: str
    run: LiveRun | None
    names: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not self.names

    def nodes(self) -> list[LiveNode]:
        if self.run is None:
            return []
        return [self.run.nodes[name] for name in self.names or self.run.nodes]


@dataclass(slots=True)
class Plan:
    """What would change, what would not and why, and how to do it."""

    runs: dict[str, None] = field(default_factory=dict)
    changed: list[dict[str, Any]] = field(default_factory=list)
    ignored: list[dict[str, Any]] = field(default_factory=list)
    acts: list[Callable[[], object]] = field(default_factory=list)
    refusal: Refusal | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def change(self, live: LiveNode, target: State, act: Callable[[], object]) -> None:
        run = live.run.run.name
        self.runs[run] = None
        self.changed.append({"job": live.job.name, "from": live.state, "to": target, "run": run})
        self.acts.append(act)

    def ignore(self, job: str, why: str) -> None:
        """It is as asked already, or does not apply; no error."""
        self.ignored.append({"job": job, "why": why})

    def refuse(self, job: str, why: str, hint: str) -> None:
        """It cannot be done; an error if nothing else is done either."""
        self.ignore(job, why)
        self.refusal = self.refusal or Refusal(1, "refused", f"{job} {why}", hint)

    def result(self) -> Answer:
        run = next(iter(self.runs)) if len(self.runs) == 1 else None
        return {"run": run, "changed": self.changed, "ignored": self.ignored, **self.extra}


def perform(engine: Engine, event: Requested) -> Answer | Refusal | None:
    """Do what was asked. None: the answer comes later (a wait)."""
    try:
        match event.command:
            case commands.Wait() as command:
                return _wait(engine, command, event.token)
            case commands.Report() as command:
                return _report(engine, command, event.by)
            case commands.Shutdown() as command:
                return _shutdown(engine, command, event.by)
            case commands.Targeted() as command:
                return _carry_out(engine, command, event.by)
    except _RefusedError as error:
        engine.note("refused", text=f"{_describe(event.command)}: {error.refusal.message}", by=event.by)
        return error.refusal


def _carry_out(engine: Engine, command: commands.Targeted, by: str) -> Answer:
    plan = Plan()
    match command:
        case commands.Hold():
            _plan_hold(engine, plan, command, by)
        case commands.Release():
            _plan_release(engine, plan, command, by)
        case _:
            for target in _resolve(engine, command.names, command.run):
                _PLANNERS[type(command)](engine, plan, target, command, by)
    if plan.refusal and not plan.changed:
        raise _RefusedError(plan.refusal.kind, plan.refusal.message, plan.refusal.hint)
    if not command.dry_run:
        engine.note("command", text=_describe(command), by=by)
        for act in plan.acts:
            act()
    return plan.result()


# ---- start, stop, retry, restart -----------------------------------------------------------------


def _plan_start(engine: Engine, plan: Plan, target: Target, command: commands.Start, by: str) -> None:
    run = target.run
    if command.date is not None and run is not None and run.unfinished:
        raise _RefusedError(
            "refused", f"{run.run.name} is still running", f"jobctl wait {target.dag}, or jobctl stop it"
        )
    fresh = run is None or command.date is not None
    finished = run is not None and target.whole and command.run is None and run.state is State.SUCCESS
    if fresh or finished:
        _plan_new_run(engine, plan, target, command.date, command.force, by)
        return
    for live in target.nodes():
        _plan_start_job(engine, plan, live, command.force, not target.whole, by)


def _plan_start_job(engine: Engine, plan: Plan, live: LiveNode, force: bool, named: bool, by: str) -> None:
    name, state = live.job.name, live.state
    if state in ACTIVE or (state in WAITING and not force):
        plan.ignore(name, f"is {state} already")
    elif state is State.SUCCESS and named:
        plan.refuse(name, f"succeeded already in {live.run.run.name}", f"jobctl restart {name}")
    elif state is State.SUCCESS or (state is State.SKIPPED and not named):
        plan.ignore(name, f"is {state}")
    elif not live.job.enabled:
        plan.refuse(name, "is disabled in the configuration", "set enabled = true and start a new run")
    else:
        plan.change(live, State.QUEUED, partial(engine.ask, live, forced=force, by=by))


def _plan_new_run(
    engine: Engine,
    plan: Plan,
    target: Target,
    date: str | None = None,
    force: bool = False,
    by: str = "",
    after: LiveRun | None = None,
) -> None:
    dag = engine.definitions.dags.get(target.dag)
    if dag is None:
        raise _RefusedError(
            "refused", f"{target.dag} is no longer in the configuration", "add it again, then jobctl reload"
        )
    asked = [job for job in dag.jobs if target.whole or job.name in target.names]
    if not target.whole and all(not job.enabled for job in asked):
        raise _RefusedError("refused", f"{asked[0].name} is disabled in the configuration", "set enabled = true")
    name = engine.registry.free_name(dag, engine.now.wall, date)
    plan.runs[name] = None
    for job in asked:
        state = State.QUEUED if job.enabled else State.SKIPPED
        plan.changed.append({"job": job.name, "from": State.STOPPED, "to": state, "run": name})

    def open_run() -> None:
        only = None if target.whole and not force else [job.name for job in asked if job.enabled]
        live_run = engine.open_run(dag, name, Trigger.COMMAND, only=only, after=after)
        for job_name in only or ():
            engine.ask(live_run.nodes[job_name], forced=force, by=by)

    plan.acts.append(open_run)


def _plan_stop(engine: Engine, plan: Plan, target: Target, command: commands.Stop, by: str) -> None:
    if target.run is None and not target.whole:
        plan.ignore(target.names[0], "has not run yet")
    for live in target.nodes():
        if live.state in ACTIVE and (command.now or live.state is State.RUNNING or live.node.again):
            target_state = State.STOPPED if live.awaits_report else State.STOPPING
            plan.change(live, target_state, partial(engine.halt, live, now=command.now, by=by))
        elif live.state in WAITING:
            plan.change(live, State.STOPPED, partial(engine.halt, live, by=by))
        elif not target.whole or live.state is State.STOPPING:
            plan.ignore(live.job.name, f"is {live.state}" + (" already" if live.state is State.STOPPING else ""))


def _plan_retry(engine: Engine, plan: Plan, target: Target, command: commands.Retry, by: str) -> None:
    if target.run is None and not target.whole:
        raise _RefusedError("refused", f"{target.names[0]} has not run yet", f"jobctl start {target.names[0]}")
    again: dict[LiveNode, None] = {}
    for live in target.nodes():
        if live.state in (State.FAILED, State.LOST):
            again[live] = None
        elif not target.whole:
            plan.refuse(live.job.name, f"is {live.state}, not failed or lost", f"jobctl restart {live.job.name}")
    if command.downstream:
        again |= dict.fromkeys(_all_downstream(again))
    for live in again:
        if live.state in ACTIVE or live.state in WAITING:
            plan.ignore(live.job.name, f"is {live.state} already")
        elif live.job.enabled:
            plan.change(live, State.QUEUED, partial(engine.ask, live, by=by))


def _all_downstream(roots: Iterable[LiveNode]) -> Iterator[LiveNode]:
    seen = set(roots)
    pending = list(seen)
    while pending:
        for edge in pending.pop().downstream:
            if edge.downstream not in seen:
                seen.add(edge.downstream)
                pending.append(edge.downstream)
                yield edge.downstream


def _plan_restart(engine: Engine, plan: Plan, target: Target, command: commands.Restart, by: str) -> None:
    run = target.run
    if run is None or target.whole:
        for live in target.nodes():
            if live.state is State.RUNNING or live.state in WAITING or live.node.again:
                to = State.STOPPING if live.state in ACTIVE and not live.awaits_report else State.STOPPED
                plan.change(live, to, partial(engine.halt, live, by=by))
        plan.runs.clear()
        _plan_new_run(engine, plan, target, by=by, after=run)
        return
    for live in target.nodes():
        if live.state in ACTIVE:
            plan.change(live, State.STOPPING, partial(engine.halt, live, again=True, by=by))
        elif live.state in WAITING:
            plan.ignore(live.job.name, f"is {live.state} already")
        elif not live.job.enabled:
            plan.refuse(live.job.name, "is disabled in the configuration", "set enabled = true and start a new run")
        else:
            plan.change(live, State.QUEUED, partial(engine.ask, live, by=by))


# ---- skip, mark, hold, release -------------------------------------------------------------------


def _plan_skip(engine: Engine, plan: Plan, target: Target, command: commands.Skip, by: str) -> None:
    _plan_outcome(engine, plan, target, Move.SKIP, f"skipped by {by}", by)


def _plan_mark(engine: Engine, plan: Plan, target: Target, command: commands.Mark, by: str) -> None:
    moves = {"success": Move.MARK_SUCCESS, "failed": Move.MARK_FAILED}
    move = moves.get(command.outcome)
    if move is None:
        raise _RefusedError("wrong_params", f"cannot mark as {command.outcome!r}", "success or failed", WRONG_PARAMS)
    _plan_outcome(engine, plan, target, move, f"marked {command.outcome} by {by}", by)


def _plan_outcome(engine: Engine, plan: Plan, target: Target, move: Move, reason: str, by: str) -> None:
    """Set the outcome of jobs by hand, wherever the table of moves allows it."""
    if target.run is None:
        name = target.names[0] if target.names else target.dag
        raise _RefusedError("refused", f"{name} has no run yet", f"jobctl start {target.dag}")
    sources, to = TRANSITIONS[move]
    for live in target.nodes():
        if live.state is to:
            plan.ignore(live.job.name, f"is {to} already")
        elif live.state in ACTIVE:
            plan.refuse(live.job.name, f"is {live.state}", f"jobctl stop {live.job.name} first")
        elif live.state not in sources:
            plan.refuse(live.job.name, f"is {live.state}", f"jobctl restart {live.job.name} runs it once more")
        else:
            plan.change(live, to, partial(_set_outcome, engine, live, move, reason, by))


def _set_outcome(engine: Engine, live: LiveNode, move: Move, reason: str, by: str) -> None:
    live.node.retry_at, live.node.forced = None, False
    engine.move(live, move, reason, by)


def _plan_hold(engine: Engine, plan: Plan, command: commands.Hold, by: str) -> None:
    for name in _need_names(engine, command.names):
        if name in engine.holds:
            plan.ignore(name, f"is held already by {engine.holds[name].by}")
            continue
        plan.changed.append({"job": name, "from": "released", "to": "held"})
        hold = Hold(name=name, by=by, at=engine.now.wall, reason=command.reason)
        plan.acts.append(partial(_set_hold, engine, name, hold, by))


def _plan_release(engine: Engine, plan: Plan, command: commands.Release, by: str) -> None:
    names = _need_names(engine, command.names)
    starts: list[str] = []
    for name in names:
        if name not in engine.holds:
            plan.ignore(name, "is not held")
            continue
        plan.changed.append({"job": name, "from": "held", "to": "released"})
        plan.acts.append(partial(_set_hold, engine, name, None, by))
        for live in engine.registry.nodes_of(name):
            others = {live.job.name, live.job.dag} - set(names)
            if live.state is State.QUEUED and live.standing is Standing.MET and not others & set(engine.holds):
                starts.append(live.job.name)
    plan.extra["starts"] = starts


def _set_hold(engine: Engine, name: str, hold: Hold | None, by: str) -> None:
    decision: Decision
    if hold is None:
        del engine.holds[name]
        decision = DeleteHold(name)
    else:
        engine.holds[name] = hold
        decision = SaveHold(hold)
    engine.decide(decision)
    is_dag = name in engine.definitions.dags
    engine.note(
        "released" if hold is None else "held",
        dag=name if is_dag else engine.job_dags.get(name),
        job=None if is_dag else name,
        text=hold.reason if hold else "",
        by=by,
    )
    engine.unsettle(engine.registry.nodes_of(name))


# ---- report, wait, shutdown ----------------------------------------------------------------------


def _report(engine: Engine, command: commands.Report, by: str) -> Answer:
    """A word about an attempt: its outcome counts when the attempt ends, at once if only that was missing."""
    [target] = _resolve(engine, (command.job,), command.run)
    live = next(iter(target.nodes()), None)
    attempt = live.attempt if live else None
    if target.whole or live is None or attempt is None:
        raise _RefusedError("refused", f"{command.job} has no attempt to report on", f"jobctl start {command.job}")
    if command.attempt is not None and command.attempt != attempt.number:
        message = f"attempt {command.attempt} of {command.job} is over; the newest is {attempt.number}"
        raise _RefusedError("refused", message, "report from inside the attempt that runs")
    if command.outcome not in ("success", "failed", "data"):
        raise _RefusedError(
            "wrong_params", f"cannot report {command.outcome!r}", "success, failed or data", WRONG_PARAMS
        )
    if command.outcome == "data" and command.data is None:
        raise _RefusedError("wrong_params", "a report of data needs an amount", "--data N", WRONG_PARAMS)
    under_way = live.state in ACTIVE
    if command.outcome != "data" and not under_way:
        message = f"attempt {attempt.number} of {command.job} is {attempt.state} already"
        raise _RefusedError("refused", message, f"jobctl mark {command.job} {command.outcome}")
    if command.data is not None:
        attempt.data = command.data
    if command.message:
        attempt.message = command.message
    told = f"data {command.data}" if command.outcome == "data" else command.outcome
    engine.journal("report", live, f"{told}: {command.message}" if command.message else told, by)
    if command.outcome != "data":
        attempt.reported = Outcome(command.outcome)
    engine.decide(SaveAttempt(attempt))
    changed = []
    if attempt.reported and live.job.finish is Finish.REPORT and command.outcome != "data":
        changed = [{"job": live.job.name, "from": live.state, "to": attempt.reported, "run": live.run.run.name}]
        if live.awaits_report:
            move = Move.SUCCEED if attempt.reported is Outcome.SUCCESS else Move.FAIL
            engine.conclude(live, None, Verdict(move, f"reported {told}"))
        else:
            engine.decide(Signal(attempt.id, Halt.WIND_DOWN))
    return {"run": live.run.run.name, "changed": changed, "ignored": []}


def _wait(engine: Engine, command: commands.Wait, token: int) -> Answer | None:
    runs: list[LiveRun] = []
    nodes: list[LiveNode] = []
    for target in _resolve(engine, command.names, command.run):
        if target.run is None:
            if command.names:
                name = target.names[0] if target.names else target.dag
                raise _RefusedError("refused", f"{name} has no run yet", f"jobctl start {target.dag}")
        elif target.whole:
            runs.append(target.run)
        else:
            nodes += target.nodes()
    engine.waiters.add(token, runs, nodes)
    answer = engine.waiters.answer_if_ended(token, engine.now)
    if answer is None and command.timeout_s is not None:
        late = Refusal(1, "timeout", f"not ended within {command.timeout_s:g} s", "jobctl status shows how far it is")

        def give_up() -> None:
            if engine.waiters.drop(token):
                engine.reply(token, late)

        engine.call_in(command.timeout_s, give_up)
    return answer


def _shutdown(engine: Engine, command: commands.Shutdown, by: str) -> Answer:
    plan = Plan()
    running = [live for each in engine.registry for live in each.nodes.values() if live.state in ACTIVE]
    engine.leaving = True
    engine.note("command", text=_describe(command), by=by)
    if command.stop_jobs:
        for live in running:
            plan.change(live, State.STOPPING, partial(engine.halt, live, by=by))
        for act in plan.acts:
            act()
    elif not command.drain:
        engine.decide(Leave())
    return {**plan.result(), "waits_for": [live.job.name for live in running if not live.awaits_report]}


# ---- names ---------------------------------------------------------------------------------------


def _resolve(engine: Engine, names: tuple[str, ...], run_name: str | None) -> list[Target]:
    """Names to targets, one a dag, in the order given. A dag's name wins over its jobs' names."""
    chosen: LiveRun | None = None
    if run_name is not None:
        chosen = engine.registry.by_name(run_name)
        if chosen is None:
            raise _RefusedError("unknown_name", f"no run {run_name!r}", "jobctl history lists the runs", 4)
        names = names or (chosen.dag.name,)
    jobs: dict[str, list[str]] = {}
    whole: set[str] = set()
    for name in names or engine.definitions.dags:
        dag = _dag_of(engine, name, chosen)
        jobs.setdefault(dag, [])
        if dag == name:
            whole.add(dag)
        elif name not in jobs[dag]:
            jobs[dag].append(name)
    return [
        Target(dag, chosen or engine.registry.newest(dag), () if dag in whole else tuple(members))
        for dag, members in jobs.items()
    ]


def _dag_of(engine: Engine, name: str, chosen: LiveRun | None) -> str:
    """The dag that a name stands for or belongs to. Refuses unknown names, with the nearest known ones."""
    if chosen is not None:
        if name == chosen.dag.name or name in chosen.nodes:
            return chosen.dag.name
        raise _unknown(name, [chosen.dag.name, *chosen.nodes], f" in {chosen.run.name}")
    if name in engine.definitions.dags or engine.registry.newest(name) is not None:
        return name
    defined_in = engine.job_dags.get(name)
    newest = engine.registry.newest(defined_in) if defined_in else None
    if defined_in and (newest is None or name in newest.nodes):
        return defined_in
    for live_run in engine.registry:  # a job that the configuration no longer has, or that moved to another dag
        if name in live_run.nodes and engine.registry.newest(live_run.dag.name) is live_run:
            return live_run.dag.name
    raise _unknown(name, [*engine.definitions.dags, *engine.job_dags])


def _unknown(name: str, known: list[str], where: str = "") -> _RefusedError:
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "jobctl status --all lists all names"
    return _RefusedError("unknown_name", f"no job or dag {name!r}{where}", hint, 4)


def _need_names(engine: Engine, names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise _RefusedError("wrong_params", "which job or dag?", "give at least one name", WRONG_PARAMS)
    for name in names:
        _dag_of(engine, name, None)
    return tuple(dict.fromkeys(names))


def _describe(command: commands.Command | commands.Targeted) -> str:
    """The command as someone would type it, for the journal."""
    words = [type(command).__name__.lower()]
    for name in command.__dataclass_fields__:
        value = getattr(command, name)
        if name == "names":
            words += value
        elif value not in (None, False, ""):
            words.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}"))
    return " ".join(words)


_PLANNERS: dict[type, Callable[[Engine, Plan, Target, Any, str], None]] = {
    commands.Start: _plan_start,
    commands.Stop: _plan_stop,
    commands.Retry: _plan_retry,
    commands.Restart: _plan_restart,
    commands.Skip: _plan_skip,
    commands.Mark: _plan_mark,
}
