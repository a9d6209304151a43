"""start, stop, retry and restart: what runs, and what does not (CONTRACT 4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from functools import partial
from typing import TYPE_CHECKING

from supervisor.core import commands
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import ACTIVE, WAITING, Dag, State, Trigger
from supervisor.core.names import Target
from supervisor.core.plan import Plan, wrong_params

if TYPE_CHECKING:
    from supervisor.core.engine import Engine

_GONE = ("is no longer in the configuration", "define it again, then jobctl reload")
_DISABLED = ("is disabled in the configuration", "set enabled = true and start a new run")


# ---- start ---------------------------------------------------------------------------------------


def plan_start(engine: Engine, plan: Plan, target: Target, command: commands.Start, by: str) -> None:
    run = target.run
    if command.date is not None:
        _check_date(command)
        if run is not None and run.unfinished:
            plan.refuse(run.run.name, "is still running", f"jobctl wait {target.dag}, or jobctl stop {target.dag}")
            return
    succeeded = run is not None and run.state is State.SUCCESS and target.whole and command.run is None
    if run is None or succeeded or command.date is not None:
        _plan_new_run(engine, plan, target, command, by)
        return
    for live in target.nodes():
        _plan_start_job(engine, plan, live, command.force, not target.whole, by)


def _check_date(command: commands.Start) -> None:
    try:
        is_date = command.date is not None and date.fromisoformat(command.date).isoformat() == command.date
    except ValueError:
        is_date = False
    if not is_date:
        raise wrong_params(f"{command.date!r} is no date", "YYYY-MM-DD, for instance 2026-11-23")
    if command.run is not None:
        raise wrong_params("a date makes a new run, but a run was named", "give --date or --run, not both")


def _plan_start_job(engine: Engine, plan: Plan, live: LiveNode, force: bool, named: bool, by: str) -> None:
    name, state = live.job.name, live.state
    if state is State.STOPPING and not live.node.again:
        plan.change(live, State.QUEUED, partial(engine.attempts.halt, live, again=True, forced=force, by=by))
    elif state in ACTIVE or (state in WAITING and not force):
        plan.ignore(name, f"is {state} already")
    elif state is State.SUCCESS and named:
        plan.refuse(name, f"succeeded already in {live.run.run.name}", f"jobctl restart {name}")
    elif state is State.SUCCESS or (state is State.SKIPPED and not named):
        plan.ignore(name, f"is {state}")
    elif not live.job.enabled:
        plan.refuse(name, *_DISABLED)
    else:
        plan.change(live, State.QUEUED, partial(engine.flow.ask, live, forced=force, by=by))


def _plan_new_run(engine: Engine, plan: Plan, target: Target, command: commands.Start, by: str) -> None:
    """A run of the whole dag, or one in which only the jobs named are asked for."""
    dag = engine.definitions.dags.get(target.dag)
    defined = {job.name: job for job in dag.jobs} if dag else {}
    for name in target.names:
        if name not in defined:
            plan.refuse(name, *_GONE)
        elif not defined[name].enabled:
            plan.refuse(name, *_DISABLED)
    asked = [job.name for job in defined.values() if job.enabled and (target.whole or job.name in target.names)]
    if dag is None:
        plan.refuse(target.dag, *_GONE)
    elif asked or target.whole:
        only = None if target.whole and not command.force else asked
        _add_new_run(engine, plan, dag, only=only, forced=command.force, day=command.date, by=by)


def _add_new_run(
    engine: Engine,
    plan: Plan,
    dag: Dag,
    *,
    by: str,
    only: list[str] | None = None,
    forced: bool = False,
    day: str | None = None,
    after: LiveRun | None = None,
) -> None:
    name = engine.registry.free_name(dag, engine.now.wall, day)
    plan.new_runs.append(name)
    for job in dag.jobs:
        if only is None or job.name in only:
            to = State.QUEUED if job.enabled else State.SKIPPED
            plan.changed.append({"job": job.name, "from": State.STOPPED, "to": to, "run": name})

    def open_run() -> None:
        live_run = engine.open_run(dag, name, Trigger.COMMAND, only=only, after=after, by=by)
        for job_name in only or ():
            engine.flow.ask(live_run.nodes[job_name], forced=forced, by=by)

    plan.act(open_run)


# ---- stop ----------------------------------------------------------------------------------------


def plan_stop(engine: Engine, plan: Plan, target: Target, command: commands.Stop, by: str) -> None:
    if target.run is None and not target.whole:
        plan.ignore(target.name, "has not run yet")
    for live in target.nodes():
        name, state = live.job.name, live.state
        if state in WAITING or state is State.RUNNING or (state is State.STOPPING and (command.now or live.node.again)):
            _plan_halt(engine, plan, live, by, now=command.now)
        elif state is State.STOPPING:
            plan.ignore(name, f"is {state} already")
        elif not target.whole:
            plan.ignore(name, f"is {state}")


def _plan_halt(engine: Engine, plan: Plan, live: LiveNode, by: str, *, now: bool = False) -> None:
    has_processes = live.state in ACTIVE and not live.awaits_report
    target = State.STOPPING if has_processes else State.STOPPED
    plan.change(live, target, partial(engine.attempts.halt, live, now=now, by=by))


# ---- retry ---------------------------------------------------------------------------------------


def plan_retry(engine: Engine, plan: Plan, target: Target, command: commands.Retry, by: str) -> None:
    if target.run is None and not target.whole:
        plan.refuse(target.name, "has not run yet", f"jobctl start {target.names[0]}")
    roots: dict[LiveNode, None] = {}
    for live in target.nodes():
        if live.state in (State.FAILED, State.LOST):
            if live.job.enabled:
                roots[live] = None
            else:
                plan.refuse(live.job.name, *_DISABLED)
        elif not target.whole:
            plan.refuse(live.job.name, f"is {live.state}, not failed or lost", f"jobctl restart {live.job.name}")
    for live in roots:
        plan.change(live, State.QUEUED, partial(engine.flow.ask, live, by=by))
    for live in _all_downstream(roots) if command.downstream else ():
        _plan_once_more(engine, plan, live, by, named=False)


def _all_downstream(roots: Iterable[LiveNode]) -> Iterator[LiveNode]:
    seen = set(roots)
    pending = list(seen)
    for live in pending:  # which grows on the way
        for edge in live.downstream:
            if edge.downstream not in seen:
                seen.add(edge.downstream)
                pending.append(edge.downstream)
                yield edge.downstream


# ---- restart -------------------------------------------------------------------------------------


def plan_restart(engine: Engine, plan: Plan, target: Target, command: commands.Restart, by: str) -> None:
    run = target.run
    if run is None:
        _plan_new_run(engine, plan, target, commands.Start(), by)
    elif target.whole:
        _plan_from_scratch(engine, plan, run, by)
    else:
        for live in target.nodes():
            _plan_once_more(engine, plan, live, by, named=True)


def _plan_from_scratch(engine: Engine, plan: Plan, run: LiveRun, by: str) -> None:
    """Stop what runs, then a new run, which begins when the last attempt of the old one is gone."""
    dag = engine.definitions.dags.get(run.dag.name)
    if dag is None:
        plan.refuse(run.dag.name, *_GONE)
        return
    for live in run.nodes.values():
        if live.state in WAITING or live.state is State.RUNNING or live.node.again:
            _plan_halt(engine, plan, live, by)
    _add_new_run(engine, plan, dag, after=run, by=by)


def _plan_once_more(engine: Engine, plan: Plan, live: LiveNode, by: str, *, named: bool) -> None:
    """Queue a job again whatever its state; what runs is stopped first."""
    name, state = live.job.name, live.state
    if state in WAITING or live.node.again:
        plan.ignore(name, f"is {state} already")
    elif state in ACTIVE:
        to = State.QUEUED if live.awaits_report else State.STOPPING
        plan.change(live, to, partial(engine.attempts.halt, live, again=True, by=by))
    elif live.job.enabled:
        plan.change(live, State.QUEUED, partial(engine.flow.ask, live, by=by))
    elif named:
        plan.refuse(name, *_DISABLED)
