"""What an operator's command means: a plan of changes first, then (unless it is a dry run) the changes.

Called by the engine with itself. The plans of single commands are made in `running` and `overrides`;
they change jobs by the verbs of `flow`, `attempts` and the engine only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from supervisor.core import commands, overrides, running
from supervisor.core.events import Refusal, Requested
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import ACTIVE, Attempt, Outcome, State
from supervisor.core.names import Target, resolve
from supervisor.core.plan import Answer, Plan, RefusedError, refused, wrong_params
from supervisor.core.waiters import Waiter

if TYPE_CHECKING:
    from supervisor.core.engine import Engine

#: Fields of a command that are no options, or say nothing about its effect.
_UNTOLD = ("names", "dry_run")
_FOR_EACH_DAG: dict[type, Callable[[Engine, Plan, Target, Any, str], None]] = {
    commands.Start: running.plan_start,
    commands.Stop: running.plan_stop,
    commands.Retry: running.plan_retry,
    commands.Restart: running.plan_restart,
    commands.Skip: overrides.plan_skip,
    commands.Mark: overrides.plan_mark,
}


def perform(engine: Engine, event: Requested) -> Answer | Refusal | None:
    """Do what was asked. None: the answer comes later (a wait)."""
    command = event.command
    try:
        if isinstance(command, commands.Wait):
            return _wait(engine, command, event.token)
        return _carry_out(engine, command, event.by)
    except RefusedError as error:
        if not isinstance(command, commands.Wait) and not command.dry_run:
            engine.ledger.note("refused", text=f"{_describe(command)}: {error}", by=event.by)
        return error.refusal


def _carry_out(engine: Engine, command: commands.Targeted | commands.Report | commands.Shutdown, by: str) -> Answer:
    plan = Plan()
    match command:
        case commands.Hold():
            overrides.plan_hold(engine, plan, command, by)
        case commands.Release():
            overrides.plan_release(engine, plan, command, by)
        case commands.Report():
            _plan_report(engine, plan, command, by)
        case commands.Shutdown():
            _plan_shutdown(engine, plan, command, by)
        case commands.Targeted():
            for target in resolve(engine, command.names, command.run):
                _FOR_EACH_DAG[type(command)](engine, plan, target, command, by)
    plan.check()
    answer = plan.answer()
    if not command.dry_run:
        if not isinstance(command, commands.Report):  # which notes the report itself
            engine.ledger.note("command", text=_describe(command), by=by)
        plan.carry_out()
    return answer


def _describe(command: commands.Command | commands.Targeted) -> str:
    """The command as someone would type it, for the journal."""
    words = [type(command).__name__.lower(), *getattr(command, "names", ())]
    for name in command.__dataclass_fields__:
        value = getattr(command, name)
        if name not in _UNTOLD and value not in (None, False, ""):
            words.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}"))
    return " ".join(words)


# ---- report --------------------------------------------------------------------------------------


def _plan_report(engine: Engine, plan: Plan, command: commands.Report, by: str) -> None:
    """A word about an attempt: its outcome counts when the attempt ends, at once if only that was missing."""
    _check_report(command)
    live, attempt = _reported_on(engine, command)
    outcome = None if command.outcome == "data" else Outcome(command.outcome)
    if outcome is not None and live.state not in ACTIVE:
        message = f"attempt {attempt.number} of {command.job} is {attempt.state} already"
        raise refused(message, f"jobctl mark {command.job} {command.outcome}")
    act = partial(engine.attempts.report, live, outcome, command.data, command.message, by)
    if outcome is not None and live.awaits_report:
        plan.change(live, State(outcome), act)
    else:
        plan.act(act)
    plan.extra["run"] = live.run.run.name


def _check_report(command: commands.Report) -> None:
    if command.outcome not in ("success", "failed", "data"):
        raise wrong_params(f"cannot report {command.outcome!r}", "success, failed or data")
    if command.outcome == "data" and command.data is None:
        raise wrong_params("a report of data needs an amount", "--data N")
    if command.data is not None and command.data < 0:
        raise wrong_params(f"an amount of data cannot be {command.data}", "--data N, 0 or more")


def _reported_on(engine: Engine, command: commands.Report) -> tuple[LiveNode, Attempt]:
    [target] = resolve(engine, (command.job,), command.run)
    live = None if target.run is None else target.run.nodes.get(command.job)
    if live is None or live.attempt is None:
        raise refused(f"{command.job} has no attempt to report on", f"jobctl start {command.job}")
    if command.attempt not in (None, live.attempt.number):
        message = f"attempt {command.attempt} of {command.job} is over; the newest is {live.attempt.number}"
        raise refused(message, "report from inside the attempt that runs")
    return live, live.attempt


# ---- wait, shutdown ------------------------------------------------------------------------------


def _wait(engine: Engine, command: commands.Wait, token: int) -> Answer | None:
    runs: list[LiveRun] = []
    nodes: list[LiveNode] = []
    for target in resolve(engine, command.names, command.run):
        if target.run is None:
            if command.names:
                raise refused(f"{target.name} has no run yet", f"jobctl start {target.name.replace(',', '')}")
        elif target.whole:
            runs.append(target.run)
        else:
            nodes += target.nodes()
    timer = None
    if command.timeout_s is not None:
        late = Refusal(1, "timeout", f"not ended within {command.timeout_s:g} s", "jobctl status shows how far it is")

        def give_up() -> None:
            if engine.waiters.drop(token):
                engine.ledger.reply(token, late)

        timer = engine.timers.call_at(engine.now.mono + command.timeout_s, give_up)
    return engine.waiters.add(Waiter(token, runs, nodes, timer), engine.now)


def _plan_shutdown(engine: Engine, plan: Plan, command: commands.Shutdown, by: str) -> None:
    """Leave at once, jobs going on; or when all have been stopped, or have ended. Waiting jobs stay as they are."""
    under_way = list(engine.attempts.under_way.values())
    if command.stop_jobs:
        for live in under_way:
            if live.state is State.RUNNING:
                to = State.STOPPED if live.awaits_report else State.STOPPING
                plan.change(live, to, partial(engine.attempts.halt, live, by=by))
    plan.act(partial(engine.leave, at_once=not (command.stop_jobs or command.drain)))
    plan.extra["waits_for"] = [live.job.name for live in under_way if not live.awaits_report]
