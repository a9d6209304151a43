"""How jobctl says things to people, in plain text: durations, times, signs, reasons, aligned columns.

Pure: values in, text out. Used for lines without a terminal and by the tables of `render` alike, so
both say the same. Shapes of jobs and runs are those of the socket's results.
"""

from __future__ import annotations

import re
import time

from supervisor.protocol import parse_rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    Record = dict[str, Any]

#: States in the order in which counts are given: what needs a look first.
STATES = ("failed", "lost", "blocked", "running", "stopping", "queued", "stopped", "skipped", "success")
#: States in which someone has to do something.
UNHAPPY = frozenset({"failed", "lost", "blocked"})
ACTIVE = frozenset({"running", "stopping"})

_SIGNS = {
    "success": ("✓", "+"),
    "failed": ("✗", "x"),
    "lost": ("?", "?"),
    "blocked": ("⊘", "#"),
    "running": ("▸", ">"),
    "stopping": ("◃", "<"),
    "queued": ("…", "."),
    "stopped": ("-", "-"),
    "skipped": ("»", "~"),
}


def sign(state: str, *, unicode: bool) -> str:
    """One character for a state."""
    return _SIGNS.get(state, (" ", " "))[0 if unicode else 1]


# ---- text from elsewhere -----------------------------------------------------------------------

# Patterns are compiled when first used: that takes 2 ms, and most commands use none.
# What moves a cursor, rings, or turns the direction of writing: controls (C0, DEL, C1) and bidi marks.
_UNSAFE = "[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
# In a log on a terminal, line breaks, tabs and colours are left as they are.
_UNSAFE_IN_LOG = "\x1b\\[[0-9;:]*m|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
_UNFINISHED_COLOUR = "\x1b(\\[[0-9;:]{0,30})?$"


def _visible(match: re.Match[str]) -> str:
    found = match.group()
    return found if len(found) > 1 else found.encode("unicode_escape").decode()


def clean(text: object) -> str:
    """One line that does nothing to a terminal: control characters are shown as escapes."""
    return re.sub(_UNSAFE, _visible, str(text))


class LogCleaner:
    """Makes log text harmless for a terminal, piece by piece; keeps its colours, tabs and line breaks."""

    def __init__(self) -> None:
        self._kept = ""  # the beginning of a colour, whose rest is in the next piece

    def clean(self, text: str) -> str:
        text = self._kept + text
        unfinished = re.search(_UNFINISHED_COLOUR, text)
        self._kept = unfinished.group() if unfinished else ""
        return re.sub(_UNSAFE_IN_LOG, _visible, text[: len(text) - len(self._kept)])


# ---- time --------------------------------------------------------------------------------------

_DURATION = r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?"


def parse_duration(text: str) -> float:
    """Seconds of "90s", "15m", "1h30m", "2d" or a number of seconds. Raises ValueError."""
    match = re.fullmatch(_DURATION, text.strip(), re.ASCII)
    if not match or not any(match.groups()):
        raise ValueError(f'"{text}" is no duration: write "90s", "15m", "1h30m", "2d" or seconds')
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


def duration(seconds: float | None) -> str:
    """At most two units: 0.4s, 12s, 1m05s, 2h03m, 3d04h."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def local_time(at: str | None) -> str:
    """An RFC 3339 time as local date and time."""
    if at is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(parse_rfc3339(at)))


def short_time(at: str | None) -> str:
    """The same, without the date if it is today's."""
    return without_today(local_time(at))


def without_today(local: str) -> str:
    return local.removeprefix(time.strftime("%Y-%m-%d "))


def job_duration(job: Record, age_s: float = 0.0) -> float | None:
    """Seconds of the newest attempt; `age_s`: how long ago the record was made, for what still runs."""
    seconds: float | None = job.get("duration_s")
    if seconds is not None and job["state"] in ACTIVE:
        return seconds + age_s
    return seconds


def run_duration(run: Record) -> float | None:
    """Seconds since the run's start, or to its end."""
    if not run.get("started_at"):
        return None
    end = parse_rfc3339(run["finished_at"]) if run.get("finished_at") else time.time()
    return end - parse_rfc3339(run["started_at"])


# ---- jobs and runs -----------------------------------------------------------------------------

_WAITS = {"job": "{}", "time": "until {}", "slot": "a slot of {}", "retry": "retry at {}", "hold": "the hold on {}"}


def note(job: Record) -> str:
    """Why a job is as it is, in one line; empty if there is nothing to say."""
    reason = job.get("reason") or ""
    waits = job.get("waiting_for") or []
    if not reason and waits:
        reason = "waits for " + ", ".join(_WAITS.get(wait["kind"], "{}").format(wait["what"]) for wait in waits)
    if job.get("held"):
        reason = f"held; {reason}" if reason else "held"
    return clean(reason)


def counts(jobs: Iterable[Record]) -> dict[str, int]:
    """How many jobs are in each state; only states that occur, those that need a look first."""
    tally: dict[str, int] = {}
    for job in jobs:
        tally[job["state"]] = tally.get(job["state"], 0) + 1
    order = [*STATES, *sorted(tally.keys() - set(STATES))]
    return {state: tally[state] for state in order if state in tally}


def counted(tally: dict[str, int]) -> str:
    return ", ".join(f"{number} {state}" for state, number in tally.items())


def by_run(result: Record) -> list[tuple[Record, list[Record]]]:
    """The jobs of a status, run by run as the daemon lists them. Jobs of a dag without a run come last."""
    groups: dict[tuple[str, str | None], tuple[Record, list[Record]]] = {}
    for run in result["runs"]:
        groups[run["dag"], run["run"]] = (run, [])
    for job in result["jobs"]:
        key = (job["dag"], job.get("run"))
        if key not in groups:
            groups[key] = ({"run": key[1], "dag": key[0], "state": "stopped"}, [])
        groups[key][1].append(job)
    return list(groups.values())


# ---- plain lines -------------------------------------------------------------------------------


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, cells left-aligned with two spaces between; the last cell may be of any length."""
    if not rows:
        return []
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]) - 1)]
    padded = (
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )
    return [line.rstrip() for line in padded]


def daemon_news(result: Record) -> str:
    """What keeps the daemon from its usual work; empty if nothing does."""
    state = (result.get("daemon") or {}).get("state") or "running"
    return "" if state == "running" else clean(state)


def status_lines(result: Record) -> list[str]:
    """A line for each run (`run …`) and each job (`job …`), the same fields always: made for grep and awk.

    jobd NEWS, only if there is news of the daemon itself
    run DAG RUN STATE TRIGGER SINCE DURATION COUNTS
    job DAG JOB STATE ATTEMPT DURATION NOTE
    """
    lines = [f"jobd  {daemon_news(result)}"] if daemon_news(result) else []
    for run, jobs in by_run(result):
        since = (local_time(run.get("started_at"))).replace(" ", "T")
        heading = ["run", run["dag"], run["run"] or "-", run["state"], run.get("trigger") or "-", since]
        lines.append("  ".join([*heading, duration(run_duration(run)), counted(counts(jobs))]).rstrip())
        lines += columns([_job_row(job) for job in jobs])
    return lines


def _job_row(job: Record) -> tuple[str, ...]:
    attempt, took = str(job.get("attempt") or "-"), duration(job_duration(job))
    return ("job", clean(job["dag"]), clean(job["job"]), job["state"], attempt, took, note(job))


def history_rows(attempts: Iterable[Record]) -> list[tuple[str, ...]]:
    """Cells of past attempts: run, job, attempt, state, started, duration, why."""
    return [
        (
            clean(attempt["run"]),
            clean(attempt["job"]),
            str(attempt["attempt"]),
            attempt["state"],
            local_time(attempt["started_at"]),
            duration(attempt["duration_s"]),
            clean(attempt.get("reason") or ""),
        )
        for attempt in attempts
    ]


def event_line(event: Record) -> str:
    """ID TIME KIND WHERE TEXT (by WHO)"""
    at = local_time(event.get("at")).replace(" ", "T")
    where = event.get("run") or event.get("dag") or ""
    if job := event.get("job"):
        attempt = f"#{event['attempt']}" if event.get("attempt") else ""
        where = f"{where}/{job}{attempt}" if where else f"{job}{attempt}"
    by = f"(by {event['by']})" if event.get("by") else ""
    return clean("  ".join(filter(None, [str(event["id"]), at, event["kind"], where, event.get("text") or "", by])))


def change_lines(result: Record, *, dry_run: bool, max_lines: int = 6) -> list[str]:
    """What a command did, or would do: a line for each job, or for each kind of change if they are many."""
    changed, ignored = result.get("changed") or [], result.get("ignored") or []
    lines = []
    if result.get("run"):
        lines.append(f"run {clean(result['run'])}")
    if len(changed) <= max_lines:
        lines += columns([(clean(one["job"]), f"{one.get('from') or 'new'} -> {one['to']}") for one in changed])
    else:
        kinds: dict[str, int] = {}
        for one in changed:
            kind = f"{one.get('from') or 'new'} -> {one['to']}"
            kinds[kind] = kinds.get(kind, 0) + 1
        lines += [f"{number} jobs {kind}" for kind, number in kinds.items()]
    if len(ignored) <= max_lines:
        lines += columns([(clean(one["job"]), f"unchanged: {clean(one['why'])}") for one in ignored])
    else:
        lines.append(f"{len(ignored)} jobs unchanged, the first one: {clean(ignored[0]['why'])}")
    if not changed and not ignored:
        lines.append("nothing to change")
    return [f"would: {line}" for line in lines] if dry_run else lines
