"""How times are read: durations, wall-clock times, time zones, calendars, schedules.

Checks the syntax of schedules; when they are due is `supervisor.core.schedule`'s. Called through
`supervisor.config.keys`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from supervisor.config.values import BadValueError, Reader, listing, matching, shown, suggestion

DAY_S = 86_400
MAX_DURATION_S = 3_650 * DAY_S
MAX_SCHEDULES = 100
MAX_SCHEDULE_CHARS = 1_000
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_DURATION = re.compile(r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?")
_DURATION_UNITS_S = (DAY_S, 3_600, 60, 1)
_CLOCK = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

clock = matching(_CLOCK, 'a wall-clock time "HH:MM" from "00:00" to "23:59"')


def duration(value: Any) -> float:
    """Seconds. `"1h30m"`, or a number of seconds."""
    seconds: Any = None
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match and value:
            seconds = sum(int(count or 0) * unit for count, unit in zip(match.groups(), _DURATION_UNITS_S, strict=True))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    if seconds is None:
        forms = '"90s", "15m", "1h30m", "2d" or a number of seconds'
        raise BadValueError(f"expected a duration ({forms}), found {shown(value)}")
    if not 0 <= seconds <= MAX_DURATION_S:
        raise BadValueError(f"expected a duration from 0 to {MAX_DURATION_S // DAY_S}d, found {shown(value)}")
    return float(seconds)


def duration_of(low_s: float) -> Reader:
    """A duration that is not under `low_s`."""

    def read(value: Any) -> float:
        seconds = duration(value)
        if seconds < low_s:
            raise BadValueError(f"expected a duration of at least {low_s:g}s, found {shown(value)}")
        return seconds

    return read


def clock_or_duration(value: Any) -> Any:
    """A wall-clock time stays text, a duration becomes seconds."""
    if isinstance(value, str) and ":" in value:
        return clock(value)
    return duration(value)


# ---- time zones, calendars, schedules ----------------------------------------------------------------------


def is_timezone(key: str) -> bool:
    """Whether this machine knows the zone."""
    try:
        ZoneInfo(key)
    except (KeyError, ValueError, OSError):
        return False
    return True


@lru_cache(maxsize=1)
def _known_timezones() -> frozenset[str]:
    return frozenset(available_timezones())


def timezone(value: Any) -> str:
    if not isinstance(value, str) or not is_timezone(value):
        near = suggestion(value, sorted(_known_timezones())) if isinstance(value, str) else ""
        raise BadValueError(f'expected a time zone of this machine such as "Europe/Berlin", found {shown(value)}{near}')
    return value


def system_timezone(localtime: Path = Path("/etc/localtime"), environ: Mapping[str, str] = os.environ) -> str:
    """The machine's zone: where /etc/localtime leads, else $TZ, else UTC."""
    try:
        linked = str(localtime.readlink()).rpartition("zoneinfo/")[2]
    except OSError:
        linked = ""
    for key in (linked, environ.get("TZ", "").removeprefix(":")):
        if key and is_timezone(key):
            return key
    return "UTC"


def day(value: Any) -> date:
    try:
        if isinstance(value, str) and _DATE.fullmatch(value):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise BadValueError(f'expected a date "YYYY-MM-DD" as text, found {shown(value)}')


def weekdays(value: Any) -> frozenset[int]:
    """Days of the week, Monday = 0, from "mon-fri" or "mon,wed,sat-sun"."""
    days: set[int] = set()
    for part in value.split(",") if isinstance(value, str) else [""]:
        first, _, last = part.strip().partition("-")
        if first not in WEEKDAYS or (last or first) not in WEEKDAYS:
            raise BadValueError(f'expected days such as "mon-fri" or "mon,wed,sat", found {shown(value)}')
        start, end = WEEKDAYS.index(first), WEEKDAYS.index(last or first)
        days.update((start + step) % 7 for step in range((end - start) % 7 + 1))
    return frozenset(days)


def schedule(value: Any) -> tuple[str, ...]:
    """5-field cron, "every 15m", or a list of them."""
    if isinstance(value, list):
        found: tuple[str, ...] = listing(_occurrence, "schedules", most=MAX_SCHEDULES, least=1)(value)
        return found
    return (_occurrence(value),)


def _occurrence(value: Any) -> str:
    expected = 'expected 5 fields of cron or "every 15m"'
    if not isinstance(value, str) or len(value) > MAX_SCHEDULE_CHARS:
        raise BadValueError(f"{expected}, found {shown(value)}")
    if value.startswith("every "):
        if duration(value.removeprefix("every ").strip()) == 0:
            raise BadValueError(f"expected more than 0 seconds between two runs, found {shown(value)}")
        return value
    from cronsim import CronSim, CronSimError  # only schedules need it

    if len(value.split()) != 5:
        raise BadValueError(f"{expected}, found {shown(value)}")
    try:
        CronSim(value, datetime(2000, 1, 1))
    except CronSimError as error:
        raise BadValueError(f"{expected}, found {shown(value)}: {str(error).lower()}") from None
    return value
