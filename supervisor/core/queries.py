"""Questions about the engine's runs and jobs, and their answers in CONTRACT 5's shapes. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Any

from supervisor.core import views
from supervisor.core.events import Now, Refusal
from supervisor.core.live import LiveRun
from supervisor.core.model import Attempt

if TYPE_CHECKING:
    from supervisor.core.engine import Engine


#: Comparing names costs time: only so many, of nearly the same length, are looked at for a hint.
MAX_COMPARED, MAX_LENGTHS_APART = 1000, 3


def unknown_name(name: str, known: Iterable[str], where: str = "") -> Refusal:
    """Nobody has this name; the hint is the nearest one that somebody has."""
    alike = islice((each for each in known if abs(len(each) - len(name)) <= MAX_LENGTHS_APART), MAX_COMPARED)
    near = get_close_matches(name, alike, n=1)
    hint = f"did you mean {near[0]}?" if near else "jobctl status --all lists all names"
    return Refusal(4, "unknown_name", f"no job or dag {name!r}{where}", hint)


def status(engine: Engine, names: tuple[str, ...], run: str | None, now: Now) -> dict[str, Any] | Refusal:
    """RUNs and JOBs of the named jobs and dags, none = all: of one run, or of the newest and unfinished ones."""
    if run is not None:
        chosen = engine.registry.by_name(run)
        if chosen is None:
            return Refusal(4, "unknown_name", f"no run {run!r}", "jobctl history lists the runs")
        known = {chosen.dag.name, *chosen.nodes}
        strangers = [name for name in names if name not in known]
        if strangers:
            return unknown_name(strangers[0], known, f" in {run}")
        jobs = None if not names or chosen.dag.name in names else set(names)
        return views.status_view(engine, [chosen], jobs, [], now)
    runs = _shown_runs(engine)
    refusal = refuse_unknown(engine, names)
    if refusal is not None:
        return refusal
    wanted = set(names)
    in_runs = {live.job.name for live_run in runs for live in live_run.nodes.values()}
    unborn = [job for dag in engine.definitions.dags.values() for job in dag.jobs if job.name not in in_runs]
    if not names:
        return views.status_view(engine, runs, None, unborn, now)
    shown = [each for each in runs if each.dag.name in wanted or not wanted.isdisjoint(each.nodes)]
    members = {job.name for each in shown if each.dag.name in wanted for job in each.dag.jobs}
    members |= {job.name for job in unborn if job.dag in wanted}
    return views.status_view(engine, shown, wanted | members, unborn, now)


def _shown_runs(engine: Engine) -> list[LiveRun]:
    """By dag in the configuration's order, then dags that it no longer has; within a dag oldest first."""
    order = {name: index for index, name in enumerate(engine.definitions.dags)}
    runs = [each for each in engine.registry if each.unfinished or engine.registry.newest(each.dag.name) is each]
    return sorted(runs, key=lambda each: (order.get(each.dag.name, len(order)), each.dag.name, each.run.id))


def refuse_unknown(engine: Engine, names: tuple[str, ...]) -> Refusal | None:
    """A refusal if one of the names is neither a job nor a dag."""
    known = {*engine.definitions.dags, *engine.job_dags}
    if not known.issuperset(names):
        known |= {name for each in engine.registry for name in (each.dag.name, *each.nodes)}
    strangers = [name for name in names if name not in known]
    return unknown_name(strangers[0], known) if strangers else None


def attempt_view(attempt: Attempt, run: str, dag: str) -> dict[str, Any]:
    """One line of the history."""
    return {
        "id": attempt.id,
        "job": attempt.job,
        "dag": dag,
        "run": run,
        "attempt": attempt.number,
        "state": attempt.state,
        "reason": attempt.reason,
        "exit_code": attempt.exit_code,
        "signal": attempt.signal,
        "started_at": views.timestamp(attempt.started_at),
        "finished_at": views.timestamp(attempt.finished_at),
        "duration_s": attempt.duration_s,
        "cpu_s": attempt.cpu_s,
        "max_rss_bytes": attempt.max_rss_bytes,
        "data": attempt.data,
        "log": attempt.log,
        "log_dropped_bytes": attempt.log_dropped_bytes,
    }
