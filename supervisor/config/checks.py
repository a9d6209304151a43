"""What only shows when keys and entries are seen together: names, needs, cycles, values at odds.

Called by `supervisor.config` with what `supervisor.config.tables` could read. A key that could not be
read was told there; here nothing is concluded from it.
"""

from __future__ import annotations

import pwd
from collections.abc import Container, Iterable
from itertools import pairwise

from supervisor.config.job_values import MAX_ENV_BYTES
from supervisor.config.keys import MAX_JOBS
from supervisor.config.problems import Place, Report
from supervisor.config.tables import JobEntry, Tables
from supervisor.config.values import WRONG
from supervisor.core.graph import CycleError, dependency_order

MAIN_DAG = "main"
MAX_SOCKET_PATH_BYTES = 107  # the kernel's 108 with its closing NUL
MAX_CYCLES_TOLD = 20  # of one dag
MAX_CYCLE_NAMES = 20

_RETRY_KEYS = ("retry_delay", "retry_backoff", "retry_max_delay", "retry_codes")


def check_tables(tables: Tables, report: Report, *, complete: bool) -> None:
    """Tell everything that is at odds. Not `complete`: a file is missing, so unknown names prove nothing."""
    _check_daemon(tables, report)
    if complete:
        _check_dags(tables, report)
    names = _Names(tables, report, complete=complete)
    for job in tables.jobs.values():
        names.check(job)
        _check_job(job, report)
    _check_users(tables.jobs.values(), report)
    _check_cycles(tables, report)


def upstreams_of(job: JobEntry, peers: Container[str]) -> set[str]:
    """The jobs among `peers` that a job needs."""
    return {need.job for group in job.values["needs"] for need in group if need.job in peers}


def jobs_by_dag(tables: Tables) -> dict[str, dict[str, JobEntry]]:
    """Jobs by dag and name. A dag without a table is here only if it has jobs, and first of all then."""
    main: dict[str, dict[str, JobEntry]] = {} if MAIN_DAG in tables.named["dags"] else {MAIN_DAG: {}}
    dags = main | {name: {} for name in tables.named["dags"]}
    for job in tables.jobs.values():
        if job.readable("dag") and job.values["dag"] in dags:
            dags[job.values["dag"]][job.name] = job
    return {name: jobs for name, jobs in dags.items() if jobs or name not in main}


# ---- daemon and dags -------------------------------------------------------------------------------


def _check_daemon(tables: Tables, report: Report) -> None:
    daemon = tables.singles.get("daemon")
    socket = daemon.value.get("socket") if daemon else None
    if daemon is None or not isinstance(socket, str):
        return
    length = len(str(daemon.place.source.folder / socket).encode())
    if length > MAX_SOCKET_PATH_BYTES:
        limit = f"a socket's path has at most {MAX_SOCKET_PATH_BYTES} bytes"
        report.error(daemon.place.at("socket"), f"{limit}, found {length}; choose a shorter one")


def _check_dags(tables: Tables, report: Report) -> None:
    """What dags name, when all files could be read."""
    used = {job.values["dag"] for job in tables.jobs.values()}
    for name, dag in tables.named["dags"].items():
        if dag.value is WRONG:
            continue
        if name not in used and WRONG not in used:
            report.warn(dag.place, f'no job is in this dag; give one dag = "{name}"')
        calendar = dag.value.get("calendar")
        if isinstance(calendar, str) and calendar not in tables.named["calendars"]:
            hint = report.near(calendar, tables.named["calendars"]) or f"; define it as [calendars.{calendar}]"
            report.error(dag.place.at("calendar"), f'no calendar "{calendar}"{hint}')
        _check_routes(dag.value.get("notify"), dag.place.at("notify"), tables, report)


def _check_routes(routes: object, place: Place, tables: Tables, report: Report) -> None:
    for index, route in enumerate(routes if isinstance(routes, tuple) else ()):
        if route not in tables.named["notify"]:
            hint = report.near(route, tables.named["notify"]) or f"; define it as [notify.{route}]"
            report.error(place.at(index), f'no route "{route}"{hint}')


# ---- names that jobs use ---------------------------------------------------------------------------


class _Names:
    """Checks of one job against all that is defined."""

    def __init__(self, tables: Tables, report: Report, *, complete: bool) -> None:
        self._tables = tables
        self._dags = tables.named["dags"]
        self._pools = tables.named["pools"]
        self._report = report
        self._complete = complete
        if len(tables.jobs) > MAX_JOBS:
            last = next(reversed(tables.jobs.values()))
            report.error(last.own.place, f"expected at most {MAX_JOBS} jobs, found {len(tables.jobs)}")

    def check(self, job: JobEntry) -> None:
        self._own_name(job)
        if self._complete and job.readable("dag"):
            self._dag(job)
        if job.readable("pool", "slots"):
            self._pool(job)
        if job.readable("needs"):
            self._needs(job)
        if self._complete:
            _check_routes(job.values["notify"], job.place_of("notify"), self._tables, self._report)

    def _own_name(self, job: JobEntry) -> None:
        if job.name in self._dags:
            where = f"a dag bears this name ({self._dags[job.name].place})"
        elif job.name == MAIN_DAG:
            where = f'"{MAIN_DAG}" is the dag of jobs that name none'
        else:
            return
        self._report.error(job.own.place, f"{where}; jobs and dags need different names")

    def _dag(self, job: JobEntry) -> None:
        dag = job.values["dag"]
        if dag not in self._dags and dag != MAIN_DAG:
            hint = self._report.near(dag, [*self._dags, MAIN_DAG]) or f"; define it as [dags.{dag}]"
            self._report.error(job.place_of("dag"), f'no dag "{dag}"{hint}')

    def _pool(self, job: JobEntry) -> None:
        pool, slots = job.values["pool"], job.values["slots"]
        if pool is None:
            if "slots" in job.own.value:
                self._report.error(job.place_of("slots"), "slots are taken from a pool; name one with pool = …")
        elif pool not in self._pools:
            if self._complete:
                hint = self._report.near(pool, self._pools) or f"; define it under [pools] as {pool} = SLOTS"
                self._report.error(job.place_of("pool"), f'no pool "{pool}"{hint}')
        elif self._pools[pool].value is not WRONG and slots > self._pools[pool].value:
            has = f'pool "{pool}" has {self._pools[pool].value} ({self._pools[pool].place})'
            self._report.error(job.place_of("slots"), f"{has}, so {slots} slots can never be had")

    def _needs(self, job: JobEntry) -> None:
        place = job.place_of("needs")
        for index, group in enumerate(job.values["needs"]):
            for need in group:
                self._need(job, need.job, place.at(index))

    def _need(self, job: JobEntry, name: str, place: Place) -> None:
        upstream = self._tables.jobs.get(name)
        if name == job.name:
            self._report.error(place, "a job cannot need itself; take it out")
        elif upstream is None:
            if self._complete and name not in self._tables.named["jobs"]:
                self._report.error(place, self._unknown_job(name))
        elif job.readable("dag") and upstream.readable("dag") and upstream.values["dag"] != job.values["dag"]:
            theirs, ours = upstream.values["dag"], job.values["dag"]
            both = f'"{name}" is in dag "{theirs}", "{job.name}" in "{ours}"'
            self._report.error(place, f"{both}; a job needs jobs of its own dag")
        elif upstream.values["enabled"] is False and job.values["enabled"] is True:
            self._report.warn(place, f'"{name}" is disabled ({upstream.place_of("enabled")}) and will be skipped')

    def _unknown_job(self, name: str) -> str:
        if name in self._dags:
            return f'"{name}" is a dag; a job needs jobs of its own dag'
        hint = self._report.near(name, self._tables.jobs) or f"; define it as [jobs.{name}]"
        return f'no job "{name}"{hint}'


# ---- one job's keys against each other -------------------------------------------------------------


def _check_job(job: JobEntry, report: Report) -> None:
    if job.values["command"] is None:
        report.error(job.own.place, 'command is missing; say what to run, as text or as ["program", "argument"]')
    if job.readable("success_codes", "skip_codes", "retry_codes"):
        _check_codes(job, report)
    if job.readable("retries", *_RETRY_KEYS):
        _check_retries(job, report)
    if job.readable("env"):
        size = sum(len(name.encode()) + len(value.encode()) + len("=\0") for name, value in job.values["env"].items())
        if size > MAX_ENV_BYTES:
            report.error(
                job.place_of("env"),
                f"expected at most {MAX_ENV_BYTES} bytes in all, found {size}; use env_file",
            )
    expect = job.values["expect"]
    for key in ("runtime", "data") if isinstance(expect, dict) else ():
        _check_range(expect.get(key), job.place_of("expect").at(key), report)


def _check_codes(job: JobEntry, report: Report) -> None:
    success, skip, retry = (set(job.values[key] or ()) for key in ("success_codes", "skip_codes", "retry_codes"))
    if both := success & skip:
        # The job's own key is the one to change, or the first that was written at all.
        key = "skip_codes" if "skip_codes" in job.own.value else "success_codes"
        report.error(job.place_of(key), f"{_listed(both)} cannot mean both success and skip; take it out of one")
    if never := retry & (success | skip):
        report.warn(job.place_of("retry_codes"), f"{_listed(never)} is no failure, so it is never retried")


def _check_retries(job: JobEntry, report: Report) -> None:
    if not job.values["retries"]:
        for key in job.own.value.keys() & _RETRY_KEYS:
            report.warn(job.own.place.at(key), "has no effect without retries; set retries, or take it out")
    if job.is_written("retry_delay") and job.is_written("retry_max_delay"):
        delay_s, most_s = job.values["retry_delay"], job.values["retry_max_delay"]
        if delay_s > most_s:
            report.error(job.place_of("retry_delay"), f"{delay_s:g}s is more than retry_max_delay ({most_s:g}s)")


def _check_range(limits: object, place: Place, report: Report) -> None:
    if not isinstance(limits, dict):
        return
    low, high = limits.get("min"), limits.get("max")
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        report.error(place, f"min ({low:g}) is more than max ({high:g})")


def _listed(codes: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(codes)))


def _check_users(jobs: Iterable[JobEntry], report: Report) -> None:
    """An account may be made later, so an unknown one is no error."""
    by_user: dict[str, list[JobEntry]] = {}
    for job in jobs:
        if isinstance(job.values["user"], str):
            by_user.setdefault(job.values["user"], []).append(job)
    for user, its_jobs in by_user.items():
        if not _is_account(user):
            for job in its_jobs:
                report.warn(job.place_of("user"), f'this machine has no account "{user}"; the job cannot start')


def _is_account(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


# ---- cycles ----------------------------------------------------------------------------------------


def _check_cycles(tables: Tables, report: Report) -> None:
    for jobs in jobs_by_dag(tables).values():
        needs = {
            name: upstreams_of(job, jobs) - {name} if job.readable("needs") else set() for name, job in jobs.items()
        }
        for _ in range(MAX_CYCLES_TOLD):
            cycle = _find_cycle(needs)
            if not cycle:
                break
            place = jobs[cycle[0]].place_of("needs")
            report.error(place, f"needs run in a circle: {_shown_cycle(cycle)}; take one out")
            for name, upstream in pairwise(cycle):
                needs[name].discard(upstream)


def _find_cycle(needs: dict[str, set[str]]) -> list[str]:
    """a, b, a if a needs b and b needs a, beginning with the job that was defined first; or nothing."""
    try:
        dependency_order(needs)
    except CycleError as error:
        ring = error.args[1][:0:-1]  # graphlib lists upstreams first, and one name twice
        positions = {name: index for index, name in enumerate(needs)}
        start = ring.index(min(ring, key=positions.__getitem__))
        return [*ring[start:], *ring[: start + 1]]
    return []


def _shown_cycle(cycle: list[str]) -> str:
    if len(cycle) > MAX_CYCLE_NAMES:
        cycle = [*cycle[: MAX_CYCLE_NAMES - 2], f"… {len(cycle) - MAX_CYCLE_NAMES} more …", *cycle[-2:]]
    return " → ".join(cycle)
