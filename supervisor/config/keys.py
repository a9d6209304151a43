"""The one table of all keys: how each is read, its default, and whether what it asks for is built.

Knows no file and no value. Called by `supervisor.config.tables` (to read) and `supervisor.config` (to build).

Where CONTRACT section 2 shows an example and no default, the default is the one below: retry_delay 30s,
retry_backoff 2, retry_max_delay 10m (or retry_delay, if that is longer), stop_timeout 10s, log_max 100MB,
and no timeout. `timeout = 0` means none, which is how a job lifts the timeout of [defaults].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supervisor.config import job_values as job
from supervisor.config import times
from supervisor.config.access import group
from supervisor.config.values import Reader, choice, flag, listing, name, number, octal, path, secret, size, text, whole
from supervisor.config.values import user as account
from supervisor.core.model import Finish

MAX_JOBS = 20_000
MAX_DESCRIPTION_CHARS = 1_000
MAX_TAG_CHARS = 64
MAX_TAGS = 50
MAX_RUNNING = 100_000
MAX_POOL_SLOTS = 100_000
MAX_RETRIES = 1_000
MAX_RETRY_BACKOFF = 100
MAX_PRIORITY = 1_000_000
MAX_OPEN_FILES = 2**20
MAX_PROCESSES = 2**22  # the kernel's highest pid
MAX_DATA = 2**63 - 1
MAX_CODES = 256
MAX_LISTED = 1_000  # groups, routes, URLs, dates of a calendar
MAX_URL_CHARS = 4_096

DEFAULT_ALERT_KINDS = (
    "failed", "lost", "missed", "late_start", "late_finish", "too_long", "too_short", "too_much_data",
    "too_little_data", "no_data", "recovered",
)  # fmt: skip
ALERT_KINDS = (*DEFAULT_ALERT_KINDS, "success", "retrying", "run_success", "run_failed")


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `read` is a table of keys if the value is a table. `field`: its name in the model, if that differs."""

    read: Reader | Mapping[str, Key]
    default: Any = None
    field: str = ""
    built: bool = True


Keys = Mapping[str, Key]


@dataclass(frozen=True, slots=True)
class Section:
    """One table at the top. `named`: it holds one entry for each NAME, and `key` is that of an entry."""

    key: Key
    named: bool = False
    main_only: bool = False


_exit_code = whole(0, 255)
_names = listing(name, "names", most=MAX_LISTED)

DAEMON: Keys = {
    "state_dir": Key(path),
    "socket": Key(path),
    "socket_mode": Key(octal),
    "timezone": Key(times.timezone),
    "max_running": Key(whole(0, MAX_RUNNING), 0),
    "keep": Key(
        {"history": Key(times.duration), "logs": Key(times.duration), "logs_total": Key(size())},
        built=False,
    ),
}

ACCESS: Keys = dict.fromkeys(("view", "operate", "admin"), Key(listing(group, "groups", most=MAX_LISTED)))

CALENDAR: Keys = {
    "weekdays": Key(times.weekdays),
    "except": Key(listing(times.day, "dates", most=MAX_LISTED)),
    "also": Key(listing(times.day, "dates", most=MAX_LISTED)),
}

DAG: Keys = {
    "description": Key(text(MAX_DESCRIPTION_CHARS), ""),
    "schedule": Key(times.schedule, built=False),
    "timezone": Key(times.timezone),
    "calendar": Key(name, built=False),
    "overlap": Key(choice(str, ["skip", "queue", "parallel"]), built=False),
    "catchup": Key(choice(str, ["none", "last", "all"]), built=False),
    "catchup_window": Key(times.duration, built=False),
    "start_by": Key(times.clock_or_duration, built=False),
    "finish_by": Key(times.clock_or_duration, built=False),
    "autostart": Key(flag, False),
    "max_running": Key(whole(0, MAX_RUNNING), 0),
    "notify": Key(_names, built=False),
}

LIMITS: Keys = {
    "memory": Key(size(10**6), field="memory_bytes"),
    "cpu_time": Key(times.duration_of(1), field="cpu_time_s"),
    "open_files": Key(whole(8, MAX_OPEN_FILES)),
    "processes": Key(whole(1, MAX_PROCESSES)),
    "nice": Key(whole(-20, 19)),
}

EXPECT: Keys = {
    "runtime": Key({"min": Key(times.duration), "max": Key(times.duration)}),
    "data": Key({"min": Key(whole(0, MAX_DATA)), "max": Key(whole(0, MAX_DATA))}),
    "data_within": Key(times.duration),
}

JOB: Keys = {
    "dag": Key(name, "main"),
    "description": Key(text(MAX_DESCRIPTION_CHARS), ""),
    "tags": Key(listing(text(MAX_TAG_CHARS, min_chars=1), "tags", most=MAX_TAGS), ()),
    "enabled": Key(flag, True),
    "command": Key(job.command),
    "dir": Key(path),
    "env": Key(job.env, {}),
    "env_file": Key(path),
    "user": Key(account),
    "umask": Key(octal),
    "needs": Key(job.needs, ()),
    "at": Key(times.clock, built=False),
    "timeout": Key(times.duration, field="timeout_s"),
    "retries": Key(whole(0, MAX_RETRIES), 0),
    "retry_delay": Key(times.duration, 30.0, "retry_delay_s"),
    "retry_backoff": Key(number(1, MAX_RETRY_BACKOFF), 2.0),
    "retry_max_delay": Key(times.duration, 600.0, "retry_max_delay_s"),
    "retry_codes": Key(listing(_exit_code, "exit codes", most=MAX_CODES, least=1)),
    "retry_lost": Key(flag, False),
    "success_codes": Key(listing(_exit_code, "exit codes", most=MAX_CODES, least=1), (0,)),
    "skip_codes": Key(listing(_exit_code, "exit codes", most=MAX_CODES), ()),
    "finish": Key(choice(Finish, Finish), Finish.TREE),
    "stop_signal": Key(job.stop_signal, 15),
    "stop_timeout": Key(times.duration, 10.0, "stop_timeout_s"),
    "pool": Key(name),
    "slots": Key(whole(1, MAX_POOL_SLOTS), 1),
    "priority": Key(whole(-MAX_PRIORITY, MAX_PRIORITY), 0),
    "limits": Key(LIMITS, {}),
    "log_max": Key(size(), 100 * 10**6, "log_max_bytes"),
    "expect": Key(EXPECT, built=False),
    "notify": Key(_names, built=False),
}

NOTIFY: Keys = {
    "urls": Key(listing(secret(MAX_URL_CHARS), "URLs", most=MAX_LISTED)),
    "urls_file": Key(path),
    "urls_env": Key(text(MAX_TAG_CHARS, min_chars=1)),
    "on": Key(listing(choice(str, ALERT_KINDS), "kinds of alerts", most=len(ALERT_KINDS)), DEFAULT_ALERT_KINDS),
}

JOBLOG: Keys = {
    "url": Key(secret(MAX_URL_CHARS)),
    "password_file": Key(path),
    "password_env": Key(text(MAX_TAG_CHARS, min_chars=1)),
    "table": Key(name, "job_log"),
    "poll": Key(times.duration_of(1), 10.0),
}

SECTIONS: Mapping[str, Section] = {
    "include": Section(Key(lambda patterns: patterns), main_only=True),  # read by supervisor.config.files
    "daemon": Section(Key(DAEMON), main_only=True),
    "access": Section(Key(ACCESS), main_only=True),
    "defaults": Section(Key(JOB), main_only=True),
    "pools": Section(Key(whole(1, MAX_POOL_SLOTS)), named=True),
    "calendars": Section(Key(CALENDAR, built=False), named=True),
    "dags": Section(Key(DAG), named=True),
    "jobs": Section(Key(JOB), named=True),
    "notify": Section(Key(NOTIFY, built=False), named=True),
    "joblog": Section(Key(JOBLOG, built=False), main_only=True),
}
