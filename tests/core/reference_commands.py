"""What commands mean, from the interface's own words: the part of `reference` that reads CONTRACT's commands.

A command is planned first: what it changes, in order. If somebody refuses and nothing would change, the
whole is refused. The daemon's answer must say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from supervisor.core import commands
from supervisor.core.model import Dag
from tests.core.courses import ACTIVE, WAITING, Course, Seat

if TYPE_CHECKING:
    from tests.core.reference import Reference

Change = tuple[str, str, str]  # job (or whatever is held), from, to


class RefusedError(Exception):
    """Nothing is done."""


@dataclass
class Plan:
    changes: list[Change] = field(default_factory=list)
    acts: list[Callable[[], object]] = field(default_factory=list)
    is_refused: bool = False

    def change(self, name: str, before: str, after: str, act: Callable[[], object] | None = None) -> None:
        self.changes.append((name, before, after))
        if act is not None:
            self.acts.append(act)


def obey(reference: Reference, command: commands.Command, answer: dict[str, Any] | None) -> None:
    """Do what was asked. `answer`: the daemon's, None if it refused."""
    plan = Plan()
    try:
        _plan(reference, plan, command)
        refused = plan.is_refused and not plan.acts
    except RefusedError:
        refused = True
    assert refused == (answer is None), f"{command} was {'done' if answer else 'refused'}"
    if answer is None:
        return
    told = [(each["job"], str(each["from"]), str(each["to"])) for each in answer["changed"]]
    assert sorted(told) == sorted(plan.changes), f"{command} was answered {told}, should be {plan.changes}"
    if not getattr(command, "dry_run", False):
        for act in plan.acts:
            act()


def _plan(reference: Reference, plan: Plan, command: commands.Command) -> None:
    match command:
        case commands.Hold():
            _hold(reference, plan, command)
        case commands.Release():
            _release(reference, plan, command)
        case commands.Report():
            _report(reference, plan, command)
        case commands.Shutdown():
            _shutdown(reference, plan, command)
        case commands.Targeted():
            for target in _targets(reference, command.names, command.run):
                _PLANS[type(command)](target, plan, command)


# ---- names ---------------------------------------------------------------------------------------------


@dataclass
class Target:
    """A dag's run, and the jobs meant in it; `names` empty: all of them."""

    reference: Reference
    dag: str
    run: Course | None
    names: list[str]

    @property
    def defined(self) -> Dag | None:
        return self.reference.definitions.dags.get(self.dag)

    @property
    def seats(self) -> list[Seat]:
        if self.run is None:
            return []
        return [self.run.seats[name] for name in self.names] if self.names else in_order(self.run)


def in_order(run: Course) -> list[Seat]:
    return list(run.seats.values())


def _targets(reference: Reference, names: tuple[str, ...], run: str | None) -> list[Target]:
    chosen = None if run is None else reference.by_name(run)
    if run is not None and chosen is None:
        raise RefusedError
    if not names:
        leftover = [each.dag for each in reference.runs.values() if each.state == "running"]
        names = (chosen.dag,) if chosen else tuple(dict.fromkeys([*reference.definitions.dags, *leftover]))
    found: dict[str, list[str]] = {}
    whole = set()
    for name in names:
        dag = _dag_of(reference, name, chosen)
        members = found.setdefault(dag, [])
        if name == dag:
            whole.add(dag)
        elif name not in members:
            members.append(name)
    return [
        Target(reference, dag, chosen or reference.newest(dag), [] if dag in whole else members)
        for dag, members in found.items()
    ]


def _dag_of(reference: Reference, name: str, chosen: Course | None) -> str:
    if chosen is not None:
        if name != chosen.dag and name not in chosen.seats:
            raise RefusedError
        return chosen.dag
    if name in reference.definitions.dags or reference.newest(name):
        return name
    for dag in reference.definitions.dags.values():
        if any(job.name == name for job in dag.jobs):
            return dag.name
    for run in reference.runs.values():
        if name in run.seats and reference.newest(run.dag) is run:
            return run.dag
    raise RefusedError


# ---- start, restart ----------------------------------------------------------------------------------------


def _start(target: Target, plan: Plan, command: commands.Start) -> None:
    run, reference = target.run, target.reference
    if command.date is not None:
        if command.date == "soon" or command.run is not None:
            raise RefusedError
        if run is not None and run.state == "running":
            plan.is_refused = True
            return
    succeeded = run is not None and run.state == "success" and not target.names and command.run is None
    if run is None or succeeded or command.date is not None:
        _start_new_run(target, plan, command.force)
        return
    for seat in target.seats:
        name, state = seat.job.name, seat.state
        if state == "stopping" and not seat.again:
            plan.change(name, state, "queued", _halt(reference, seat, again=True, forced=command.force))
        elif state in ACTIVE or (state in WAITING and not command.force):
            continue
        elif state == "success" and target.names:
            plan.is_refused = True
        elif state == "success" or (state == "skipped" and not target.names):
            continue
        elif not seat.job.enabled:
            plan.is_refused = True
        else:
            plan.change(name, state, "queued", _ask(reference, seat, forced=command.force))


def _start_new_run(target: Target, plan: Plan, force: bool) -> None:
    dag = target.defined
    enabled = [job.name for job in dag.jobs if job.enabled] if dag else []
    plan.is_refused = plan.is_refused or dag is None or any(name not in enabled for name in target.names)
    asked = [name for name in enabled if not target.names or name in target.names]
    if dag is not None and (asked or not target.names):
        _new_run(target.reference, plan, dag, None if not target.names and not force else asked, forced=force)


def _new_run(
    reference: Reference,
    plan: Plan,
    dag: Dag,
    only: list[str] | None,
    *,
    forced: bool = False,
    after: Course | None = None,
) -> None:
    """All of the dag, or with all jobs stopped but those asked for."""
    for job in dag.jobs:
        if only is None or job.name in only:
            plan.change(job.name, "stopped", "queued" if job.enabled else "skipped")

    def open_run() -> None:
        gate = after if after is None or after.active else after.gate
        run = reference.open_run(dag, "queued" if only is None else "stopped")
        run.gate, run.gate_is_vague = gate, gate is not None and after is not None and after.gate_is_vague
        for name in only or ():
            reference.ask(run.seats[name], forced=forced)

    plan.acts.append(open_run)


def _restart(target: Target, plan: Plan, command: commands.Restart) -> None:
    run, dag, reference = target.run, target.defined, target.reference
    if run is None:
        _start_new_run(target, plan, force=False)
    elif target.names:
        for seat in target.seats:
            _once_more(reference, plan, seat, named=True)
    elif dag is None:
        plan.is_refused = True
    else:
        for seat in in_order(run):
            if seat.state in WAITING or seat.state == "running" or seat.again:
                _change_to_halt(reference, plan, seat)
        _new_run(reference, plan, dag, None, after=run)


def _once_more(reference: Reference, plan: Plan, seat: Seat, *, named: bool) -> None:
    if seat.state in WAITING or seat.again:
        return
    if seat.state in ACTIVE:
        to = "queued" if seat.awaits_report else "stopping"
        plan.change(seat.job.name, seat.state, to, _halt(reference, seat, again=True))
    elif seat.job.enabled:
        plan.change(seat.job.name, seat.state, "queued", _ask(reference, seat))
    elif named:
        plan.is_refused = True


# ---- stop, retry, shutdown ---------------------------------------------------------------------------------


def _stop(target: Target, plan: Plan, command: commands.Stop) -> None:
    for seat in target.seats:
        goes_on = seat.state == "stopping" and (command.now or seat.again)
        if seat.state in WAITING or seat.state == "running" or goes_on:
            _change_to_halt(target.reference, plan, seat)


def _change_to_halt(reference: Reference, plan: Plan, seat: Seat) -> None:
    to = "stopping" if seat.state in ACTIVE and not seat.awaits_report else "stopped"
    plan.change(seat.job.name, seat.state, to, _halt(reference, seat))


def _retry(target: Target, plan: Plan, command: commands.Retry) -> None:
    reference, roots = target.reference, []
    plan.is_refused = plan.is_refused or (target.run is None and bool(target.names))
    for seat in target.seats:
        if seat.state in ("failed", "lost") and seat.job.enabled:
            roots.append(seat)
        elif seat.state in ("failed", "lost") or target.names:
            plan.is_refused = True
    for seat in roots:
        plan.change(seat.job.name, seat.state, "queued", _ask(reference, seat))
    if command.downstream and target.run:
        for seat in _downstream(target.run, roots):
            _once_more(reference, plan, seat, named=False)


def _downstream(run: Course, roots: Iterable[Seat]) -> list[Seat]:
    """All that need one of the roots, or need one that does; the nearest first."""
    found = list(roots)
    for above in found:  # which grows on the way
        for seat in in_order(run):
            if seat not in found and any(need.job == above.job.name for group in seat.job.needs for need in group):
                found.append(seat)
    return [seat for seat in found if seat not in roots]


def _shutdown(reference: Reference, plan: Plan, command: commands.Shutdown) -> None:
    if command.stop_jobs:
        for seat in reference.under_way.values():
            if seat.state == "running":
                _change_to_halt(reference, plan, seat)

    def leave() -> None:
        at_once = not (command.stop_jobs or command.drain) or reference.leaving == "at once"
        reference.leaving = "at once" if at_once else "when done"

    plan.acts.append(leave)


# ---- by hand -----------------------------------------------------------------------------------------------

_MAY_BE_SET = ("stopped", "queued", "blocked", "lost")


def _skip(target: Target, plan: Plan, command: commands.Skip) -> None:
    _set_outcome(target, plan, command.names, "skipped", (*_MAY_BE_SET, "failed", "skipped"))


def _mark(target: Target, plan: Plan, command: commands.Mark) -> None:
    other = {"success": "failed", "failed": "success"}.get(command.outcome)
    if other is None:
        raise RefusedError
    _set_outcome(target, plan, command.names, command.outcome, (*_MAY_BE_SET, "skipped", other))


def _set_outcome(target: Target, plan: Plan, names: tuple[str, ...], to: str, sources: tuple[str, ...]) -> None:
    if not names:
        raise RefusedError
    plan.is_refused = plan.is_refused or target.run is None
    for seat in target.seats:
        if seat.state == to and (to != "skipped" or seat.by_operator):
            continue
        if seat.state not in sources:
            plan.is_refused = True
        else:
            plan.change(seat.job.name, seat.state, to, _rest(target.reference, seat, to))


def _hold(reference: Reference, plan: Plan, command: commands.Hold) -> None:
    if not command.names or (command.until is not None and command.until <= reference.now.wall):
        raise RefusedError
    for name in dict.fromkeys(command.names):
        _dag_of(reference, name, None)
        if name not in reference.holds:
            plan.change(name, "released", "held", _place_hold(reference, name, command.until))


def _release(reference: Reference, plan: Plan, command: commands.Release) -> None:
    if not command.names:
        raise RefusedError
    for name in dict.fromkeys(command.names):
        if name in reference.holds:
            plan.change(name, "held", "released", _lift_hold(reference, name))
        else:
            _dag_of(reference, name, None)


def _report(reference: Reference, plan: Plan, command: commands.Report) -> None:
    if command.outcome == "data" and command.data is None:
        raise RefusedError
    [target] = _targets(reference, (command.job,), command.run)
    seat = None if target.run is None else target.run.seats.get(command.job)
    outcome = None if command.outcome == "data" else command.outcome
    if seat is None or seat.attempt is None or (outcome is not None and seat.state not in ACTIVE):
        raise RefusedError
    if outcome is not None and seat.awaits_report:
        plan.change(seat.job.name, seat.state, outcome)
    reporting = seat
    plan.acts.append(lambda: reference.report(reporting, outcome))


# ---- acts --------------------------------------------------------------------------------------------------


def _ask(reference: Reference, seat: Seat, *, forced: bool = False) -> Callable[[], object]:
    return lambda: reference.ask(seat, forced=forced)


def _halt(reference: Reference, seat: Seat, *, again: bool = False, forced: bool = False) -> Callable[[], object]:
    return lambda: reference.halt(seat, again=again, forced=forced)


def _rest(reference: Reference, seat: Seat, state: str) -> Callable[[], object]:
    return lambda: reference.rest(seat, state, by_operator=True)


def _place_hold(reference: Reference, name: str, until: float | None) -> Callable[[], object]:
    return lambda: reference.holds.__setitem__(name, until)


def _lift_hold(reference: Reference, name: str) -> Callable[[], object]:
    return lambda: reference.holds.pop(name, None)


_PLANS: dict[type, Callable[[Target, Plan, Any], None]] = {
    commands.Start: _start,
    commands.Stop: _stop,
    commands.Retry: _retry,
    commands.Restart: _restart,
    commands.Skip: _skip,
    commands.Mark: _mark,
}
