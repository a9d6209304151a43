"""CONTRACT 5's JSON shapes of what the engine holds. Reads only.

Times are RFC 3339 UTC with milliseconds, durations seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from supervisor.core.events import Now
from supervisor.core.graph import Standing
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import ACTIVE, WAITING, Hold, Job, JournalEntry, State

if TYPE_CHECKING:
    from supervisor.core.engine import Engine


def timestamp(at: float | None) -> str | None:
    """`2026-11-23T08:00:00.000Z`"""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def run_view(live_run: LiveRun) -> dict[str, Any]:
    run = live_run.run
    return {
        "run": run.name,
        "dag": run.dag.name,
        "run_date": run.run_date,
        "state": live_run.state,
        "trigger": run.trigger,
        "started_at": timestamp(run.started_at),
        "finished_at": timestamp(run.finished_at),
    }


def job_view(
    live: LiveNode, now: Now, hold: Hold | None = None, waiting_for: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    """One job of a run. `waiting_for`: what `Status` found out about a waiting job."""
    node, attempt, job = live.node, live.attempt, live.job
    shown = attempt if live.state not in WAITING or node.tries else None
    duration_s = shown.duration_s if shown else None
    if shown and live.state in ACTIVE:
        duration_s = max(0.0, now.wall - shown.started_at)
    return {
        "job": job.name,
        "dag": job.dag,
        "run": live.run.run.name,
        "state": live.state,
        "held": hold is not None,
        "reason": node.reason,
        "waiting_for": waiting_for or [],
        "attempt": node.attempts,
        "retries_left": max(0, job.retries - node.tries),
        "pid": live.pid,
        "exit_code": shown.exit_code if shown else None,
        "signal": shown.signal if shown else None,
        "started_at": timestamp(shown.started_at) if shown else None,
        "finished_at": timestamp(shown.finished_at) if shown else None,
        "duration_s": duration_s,
        "data": attempt.data if attempt else None,
        "tags": job.tags,
    }


def _unborn_view(job: Job, hold: Hold | None) -> dict[str, Any]:
    """A job that no run in memory has."""
    return {
        "job": job.name,
        "dag": job.dag,
        "run": None,
        "state": State.STOPPED,
        "held": hold is not None,
        "reason": "" if job.enabled else "disabled in the configuration",
        "waiting_for": [],
        "attempt": 0,
        "retries_left": job.retries,
        **dict.fromkeys(("pid", "exit_code", "signal", "started_at", "finished_at", "duration_s", "data")),
        "tags": job.tags,
    }


def event_view(entry: JournalEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": timestamp(entry.at),
        "kind": entry.kind,
        "run": entry.run,
        "dag": entry.dag,
        "job": entry.job,
        "attempt": entry.attempt,
        "text": entry.text,
        "by": entry.by,
    }


def status_view(
    engine: Engine, runs: Iterable[LiveRun], jobs: set[str] | None, unborn: Iterable[Job], now: Now
) -> dict[str, Any]:
    """RUNs and JOBs in dependency order. `jobs`: only these names; None = all. `unborn`: jobs without a run."""
    shown_runs = list(runs)
    job_views = [
        job_view(live, now, engine.flow.held(live), _waiting_for(engine, live))
        for live_run in shown_runs
        for live in (live_run.nodes[job.name] for job in live_run.dag.jobs)
        if jobs is None or live.job.name in jobs
    ]
    job_views += [
        _unborn_view(job, engine.holds.get(job.name) or engine.holds.get(job.dag))
        for job in unborn
        if jobs is None or job.name in jobs
    ]
    return {"runs": [run_view(each) for each in shown_runs], "jobs": job_views}


def _waiting_for(engine: Engine, live: LiveNode) -> list[dict[str, str]]:
    """What a waiting job waits for, most decisive first; empty for others."""
    if live.state not in WAITING:
        return []
    hold = engine.flow.held(live)
    waits = [{"kind": "hold", "what": f"{hold.name}: {hold.reason}" if hold.reason else hold.name}] if hold else []
    if live.standing is not Standing.MET:
        waits += [{"kind": "job", "what": written} for _, _, written in live.open_groups()]
        return waits
    after = engine.registry.by_id(live.run.run.after)
    if after is not None:
        waits.append({"kind": "job", "what": f"the end of {after.run.name}"})
    if live.node.retry_at is not None:
        waits.append({"kind": "retry", "what": timestamp(live.node.retry_at) or ""})
    slot = engine.flow.ready.waits_for(live)
    if slot is not None:
        waits.append({"kind": "slot", "what": slot})
    return waits
