"""What can be asked of the engine: one dataclass a command, fields as in the socket's `params`.

Queries (status, history, logs …) are no commands: they change nothing and are answered elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Targeted:
    """A command about names: jobs or dags; none = every dag. `run`: a run's name, default the newest."""

    names: tuple[str, ...] = ()
    run: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Targeted):
    force: bool = False
    date: str | None = None  # run date of a new run, YYYY-MM-DD


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Targeted):
    now: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(Targeted):
    downstream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart(Targeted):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold(Targeted):
    reason: str = ""
    until: float | None = None  # epoch seconds; released by itself then


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Targeted):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip(Targeted):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark(Targeted):
    outcome: str = "success"  # or "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A job's own word, or someone's about it. `outcome`: success, failed or data."""

    outcome: str
    job: str
    run: str | None = None
    attempt: int | None = None  # its number; default the one under way, else the newest
    data: int | None = None
    message: str = ""
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Reply when all named runs or jobs have ended. `timeout_s` None = for ever."""

    names: tuple[str, ...] = ()
    run: str | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """Leave: running jobs go on (default), are stopped first, or are waited for."""

    stop_jobs: bool = False
    drain: bool = False
    dry_run: bool = False


Command = Start | Stop | Retry | Restart | Hold | Release | Skip | Mark | Report | Wait | Shutdown
