"""skip, mark, hold and release: what an operator sets by hand (CONTRACT 4)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from supervisor.core import commands
from supervisor.core.live import LiveNode
from supervisor.core.model import ACTIVE, Hold, State
from supervisor.core.names import Target, check_known, required
from supervisor.core.plan import Plan, wrong_params
from supervisor.core.transitions import TRANSITIONS, Move

if TYPE_CHECKING:
    from supervisor.core.engine import Engine

_MARKS = {"success": Move.MARK_SUCCESS, "failed": Move.MARK_FAILED}


def plan_skip(engine: Engine, plan: Plan, target: Target, command: commands.Skip, by: str) -> None:
    required(command.names)
    _plan_outcome(engine, plan, target, Move.SKIP, f"skipped by {by}", by)


def plan_mark(engine: Engine, plan: Plan, target: Target, command: commands.Mark, by: str) -> None:
    required(command.names)
    move = _MARKS.get(command.outcome)
    if move is None:
        raise wrong_params(f"cannot mark as {command.outcome!r}", "success or failed")
    _plan_outcome(engine, plan, target, move, f"marked {command.outcome} by {by}", by)


def _plan_outcome(engine: Engine, plan: Plan, target: Target, move: Move, reason: str, by: str) -> None:
    """Set the outcome of jobs, wherever the table of moves allows it."""
    if target.run is None:
        plan.refuse(target.name, "has no run yet", f"jobctl start {target.dag}")
    sources, to = TRANSITIONS[move]
    for live in target.nodes():
        name, state = live.job.name, live.state
        if state is to and (state is not State.SKIPPED or live.node.by_operator):
            plan.ignore(name, f"is {to} already")
        elif state in ACTIVE:
            plan.refuse(name, f"is {state}", f"jobctl stop {name} first")
        elif state not in sources:
            plan.refuse(name, f"is {state}", f"jobctl restart {name} runs it once more")
        else:
            plan.change(live, to, partial(engine.flow.move, live, move, reason, by))


def plan_hold(engine: Engine, plan: Plan, command: commands.Hold, by: str) -> None:
    names = required(command.names)
    check_known(engine, names)
    if command.until is not None and command.until <= engine.now.wall:
        raise wrong_params("the hold would end in the past", "give --until a time to come")
    for name in names:
        if name in engine.holds:
            plan.ignore(name, f"is held already by {engine.holds[name].by}")
            continue
        plan.changed.append({"job": name, "from": "released", "to": "held"})
        hold = Hold(name=name, by=by, at=engine.now.wall, reason=command.reason, until=command.until)
        plan.act(partial(engine.place_hold, hold))


def plan_release(engine: Engine, plan: Plan, command: commands.Release, by: str) -> None:
    """The answer's `starts`: jobs that nothing but a free slot keeps from starting then."""
    names = required(command.names)
    lifted = [name for name in names if name in engine.holds]
    check_known(engine, set(names) - set(lifted))
    for name in names:
        if name not in lifted:
            plan.ignore(name, "is not held")
            continue
        plan.changed.append({"job": name, "from": "held", "to": "released"})
        plan.act(partial(engine.lift_hold, name, by=by))
    freed = dict.fromkeys(live for name in lifted for live in engine.registry.nodes_of(name))
    plan.extra["starts"] = [live.job.name for live in freed if _starts_without(engine, live, set(lifted))]


def _starts_without(engine: Engine, live: LiveNode, lifted: set[str]) -> bool:
    still_held = ({live.job.name, live.job.dag} - lifted) & engine.holds.keys()
    return engine.flow.may_start(live) and not still_held
