"""jobs.toml and what it includes, as a frozen Config; or every error at once.

`load` for the daemon's start, `check` for whoever wants to hear of warnings too: `jobd --check`, reload.
Touches nothing but the files that it reads. Called by `supervisor.cli` and `supervisor.daemon`.

The way of a file: `files` reads it, `tables` reads each key as the table in `keys` says (`values`,
`times`, `job_values`), `checks` holds keys and names against each other, and here the model is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.config.access import Access, Group
from supervisor.config.checks import check_tables, jobs_by_dag, upstreams_of
from supervisor.config.files import read_sources
from supervisor.config.keys import JOB, LIMITS, Keys
from supervisor.config.problems import Problem, Report
from supervisor.config.tables import Entry, JobEntry, Tables, read_tables
from supervisor.config.times import system_timezone
from supervisor.core.graph import dependency_order
from supervisor.core.model import Dag, Definitions, Job, Limits

__all__ = ["Access", "Checked", "Config", "ConfigError", "DaemonSettings", "Group", "Problem", "check", "load"]

_COMPUTED = frozenset({"dir", "env_file", "limits", "timeout", "retry_max_delay"})
#: Keys of a job that go into the model as they are read, with their names there.
_COPIED = {name: key.field or name for name, key in JOB.items() if key.built and name not in _COMPUTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSettings:
    """[daemon]. None: not set, the daemon's own default applies. Paths are absolute."""

    state_dir: Path | None = None
    socket: Path | None = None
    socket_mode: int | None = None
    timezone: str = "UTC"  # the system's, if not set


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration without faults. `file` is the main file, `sources` all that were read, both absolute."""

    file: Path
    sources: tuple[Path, ...]
    definitions: Definitions
    daemon: DaemonSettings
    access: Access | None = None  # None: no roles


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of a configuration. `config` is None if there are errors."""

    config: Config | None
    errors: list[Problem]
    warnings: list[Problem]


class ConfigError(Exception):
    """The configuration is wrong, in `errors`."""

    def __init__(self, errors: list[Problem]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = errors


def load(path: Path) -> Config:
    """Read a configuration. Raises ConfigError with all that is wrong."""
    checked = check(path)
    if checked.config is None:
        raise ConfigError(checked.errors)
    return checked.config


def check(path: Path) -> Checked:
    """Read a configuration; never raises for what is in it."""
    report = Report()
    sources = read_sources(path, report)
    config = None
    if path.absolute() in sources.files:
        tables = read_tables(list(sources.files.values()), report)
        check_tables(tables, report, complete=sources.complete)
        if not report.has_errors:
            config = _build(path, tuple(sources.files), tables)
    return Checked(config, report.errors, report.warnings)


# ---- from tables to the model ----------------------------------------------------------------------


def _build(path: Path, sources: tuple[Path, ...], tables: Tables) -> Config:
    daemon = tables.singles.get("daemon")
    settings: Mapping[str, Any] = daemon.value if daemon else {}
    access = tables.singles.get("access")
    folder = path.absolute().parent
    timezone = settings.get("timezone") or system_timezone()
    dags = tables.named["dags"]
    return Config(
        file=path.absolute(),
        sources=sources,
        definitions=Definitions(
            dags={name: _dag(name, dags.get(name), jobs, timezone) for name, jobs in jobs_by_dag(tables).items()},
            pools={name: pool.value for name, pool in tables.named["pools"].items()},
            max_running=settings.get("max_running", 0),
        ),
        daemon=DaemonSettings(
            state_dir=folder / settings["state_dir"] if "state_dir" in settings else None,
            socket=folder / settings["socket"] if "socket" in settings else None,
            socket_mode=settings.get("socket_mode"),
            timezone=timezone,
        ),
        access=Access(**access.value) if access else None,
    )


def _dag(name: str, entry: Entry | None, jobs: Mapping[str, JobEntry], timezone: str) -> Dag:
    values = entry.value if entry else {}
    order = dependency_order({job.name: upstreams_of(job, jobs) for job in jobs.values()})
    return Dag(**{"name": name, "timezone": timezone, **values, "jobs": tuple(_job(jobs[job]) for job in order)})


def _job(job: JobEntry) -> Job:
    """Unlike other keys, paths begin at the folder of the file in which they are written."""
    values = job.values
    longest_delay_s = values["retry_max_delay"]
    if not job.is_written("retry_max_delay"):
        longest_delay_s = max(longest_delay_s, values["retry_delay"])
    return Job(
        **{field: values[name] for name, field in _COPIED.items()},
        name=job.name,
        dir=str(job.place_of("dir").source.folder / (values["dir"] or "")),
        env_file=str(job.place_of("env_file").source.folder / values["env_file"]) if values["env_file"] else None,
        timeout_s=values["timeout"] or None,
        retry_max_delay_s=longest_delay_s,
        limits=Limits(**_by_field(LIMITS, values["limits"])),
    )


def _by_field(keys: Keys, values: Mapping[str, Any]) -> dict[str, Any]:
    return {keys[name].field or name: value for name, value in values.items()}
