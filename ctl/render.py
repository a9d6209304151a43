"""Tables for people, by rich. Imported only when a person looks.

Values in, renderables or text out; reads nothing. Text from elsewhere goes through `words.clean` into
`Text`, so neither rich's markup nor terminal escapes in it have any effect. Every state has a sign and a
word, so nothing is told by colour alone; the colours are the terminal's own and do on light and dark.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ctl import words
from ctl.output import Output

Record = dict[str, Any]

#: With more jobs than this in all, `status` shows those that need a look and counts the rest.
MAX_JOBS_IN_FULL = 100
#: Beside failed and lost ones (always in full): how many others of a dag are then shown.
MAX_OTHERS_PER_DAG = 20
#: The job column is never wider than this share of the table.
MAX_JOB_SHARE = 0.4

_STYLES = {
    "success": "green",
    "failed": "bold red",
    "lost": "bold red",
    "blocked": "magenta",
    "running": "bold blue",
    "stopping": "bold blue",
    "queued": "",
    "stopped": "dim",
    "skipped": "dim",
}
#: What is shown first when there is no room for all.
_RANK = {state: rank for rank, state in enumerate(words.STATES)}


class _Column(NamedTuple):
    title: str
    min_width: int  # of the whole table; narrower ones do without this column
    width: int | None  # None: what is left
    right: bool = False


_COLUMNS = {
    "job": _Column("JOB", 0, 0),  # as wide as the longest name
    "state": _Column("STATE", 0, 10),
    "try": _Column("TRY", 56, 3, right=True),
    "time": _Column("TIME", 32, 6, right=True),
    "started": _Column("STARTED", 110, 19),
    "pid": _Column("PID", 130, 7, right=True),
    "data": _Column("DATA", 130, 10, right=True),
    "note": _Column("", 44, None),
}


def make_console(out: Output, **settings: Any) -> Console:
    """A console that takes text as it is, with colours if this output has them."""
    system: Literal["standard"] | None = "standard" if out.colored else None
    return Console(color_system=system, markup=False, emoji=False, highlight=False, **settings)


def to_text(renderable: RenderableType, out: Output) -> str:
    """As text for stdout, as wide as the terminal, with colours if it takes them."""
    stream = io.StringIO()
    width = shutil.get_terminal_size().columns
    make_console(out, file=stream, width=width, force_terminal=True).print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


# ---- status ------------------------------------------------------------------------------------


def status(result: Record, out: Output, *, show_all: bool = False) -> Group:
    """All runs with their jobs; a great many jobs are summarised, dag by dag."""
    width = shutil.get_terminal_size().columns
    groups = words.by_run(result)
    in_full = show_all or sum(len(jobs) for _run, jobs in groups) <= MAX_JOBS_IN_FULL
    chosen = [(run, jobs, jobs if in_full else _worth_a_look(jobs)) for run, jobs in groups]
    return _groups(chosen, out, width, hint="; --all shows them", folds=True)


def board(result: Record, out: Output, age_s: float, max_lines: int) -> Group:
    """The same for the live board: as many jobs as there are lines, those first that need a look."""
    width = shutil.get_terminal_size().columns
    groups = words.by_run(result)
    max_rows = max(0, max_lines - 1 - sum(4 if jobs else 2 for _run, jobs in groups))
    everything = [job for _run, jobs in groups for job in jobs]
    kept = {id(job) for job in _most_urgent(everything, max_rows)}
    chosen = [(run, jobs, [job for job in jobs if id(job) in kept]) for run, jobs in groups]
    return _groups(chosen, out, width, age_s=age_s)


def _worth_a_look(jobs: Sequence[Record]) -> list[Record]:
    certain = sum(job["state"] in ("failed", "lost") for job in jobs)
    candidates = [job for job in jobs if job["state"] in words.UNHAPPY | words.ACTIVE or job.get("held")]
    return _most_urgent(candidates, certain + MAX_OTHERS_PER_DAG)


def _most_urgent(jobs: Sequence[Record], max_rows: int) -> list[Record]:
    """At most so many, in the order in which they came."""
    by_urgency = sorted(range(len(jobs)), key=lambda index: _RANK.get(jobs[index]["state"], 0))
    return [jobs[index] for index in sorted(by_urgency[:max_rows])]


def _groups(
    groups: list[tuple[Record, list[Record], list[Record]]],
    out: Output,
    width: int,
    *,
    age_s: float = 0.0,
    hint: str = "",
    folds: bool = False,
) -> Group:
    if not groups:
        return Group(Text("no jobs"))
    shown = [job for _run, _jobs, rows in groups for job in rows]
    name_width = max((len(job["job"]) for job in shown), default=3)
    name_width = max(3, min(name_width, int(width * MAX_JOB_SHARE)))
    parts: list[RenderableType] = []
    for run, jobs, rows in groups:
        if parts:
            parts.append(Text())
        parts.append(_heading(run, jobs, out, width))
        if rows:
            parts.append(_table(rows, out, width, name_width, age_s=age_s, folds=folds))
        if len(rows) < len(jobs):
            kept = {id(job) for job in rows}
            rest = words.counted(words.counts(job for job in jobs if id(job) not in kept))
            parts.append(Text(f"  and {len(jobs) - len(rows)} more: {rest}{hint}", style="dim"))
    return Group(*parts)


def _state(state: str, out: Output) -> Text:
    return Text(f"{words.sign(state, unicode=out.unicode)} {state}", style=_STYLES.get(state, ""))


def _heading(run: Record, jobs: list[Record], out: Output, width: int) -> Text:
    """One line, or two where the counts do not fit beside."""
    line = Text(words.clean(run["run"] or run["dag"]), style="bold")
    line.append_text(Text("  ", style="not bold"))
    if run["run"] is None:
        line.append_text(Text("no run yet", style="not bold dim"))
        return line
    line.append_text(_state(run["state"], out))
    facts = [run.get("trigger") and f"by {run['trigger']}"]
    facts.append(run.get("started_at") and f"since {words.short_time(run['started_at'])}")
    facts.append(run.get("started_at") and words.duration(words.run_duration(run)))
    line.append("  " + ", ".join(filter(None, facts)), style="not bold")
    tally = words.counts(jobs)
    if len(jobs) > 1:
        summary = Text("  ").join(
            Text(f"{number} {state}", style=f"not bold {_STYLES.get(state, '')}") for state, number in tally.items()
        )
        fits = line.cell_len + 4 + summary.cell_len <= width
        line.append("    " if fits else "\n  ", style="not bold")
        line.append_text(summary)
    return line


def _table(
    jobs: list[Record], out: Output, width: int, name_width: int, *, age_s: float, folds: bool
) -> Table:  # fmt: skip
    columns = {key: column for key, column in _COLUMNS.items() if width >= column.min_width}
    if not any(job.get("data") is not None for job in jobs):
        columns.pop("data", None)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", width=width)
    table.add_column("", width=0)
    for key, column in columns.items():
        fixed = name_width if key == "job" else column.width
        table.add_column(
            Text(column.title), width=fixed, ratio=None if fixed else 1, justify="right" if column.right else "left"
        )
    for job in jobs:
        cells = _cells(job, out, age_s)
        table.add_row("", *(_fit(cells[key], key, job, out, folds=folds) for key in columns))
    return table


def _cells(job: Record, out: Output, age_s: float) -> dict[str, Text]:
    state = job["state"]
    return {
        "job": Text(words.clean(job["job"]), style="bold" if state in words.UNHAPPY | words.ACTIVE else ""),
        "state": _state(state, out),
        "try": Text(str(job.get("attempt") or "")),
        "time": Text("" if job.get("duration_s") is None else words.duration(words.job_duration(job, age_s))),
        "started": Text("" if job.get("started_at") is None else words.short_time(job["started_at"])),
        "pid": Text(str(job.get("pid") or "")),
        "data": Text("" if job.get("data") is None else str(job["data"])),
        "note": Text(words.note(job)),
    }


def _fit(cell: Text, key: str, job: Record, out: Output, *, folds: bool) -> Text:
    """One line, cut where there is no room; only what went wrong is told in full."""
    if not (folds and key == "note" and job["state"] in words.UNHAPPY):
        cell.no_wrap = True
        cell.overflow = "ellipsis" if out.unicode else "crop"
    return cell


# ---- history -----------------------------------------------------------------------------------


def history(attempts: Iterable[Record], out: Output) -> RenderableType:
    rows = words.history_rows(attempts)
    if not rows:
        return Text("no attempts")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    overflow: Literal["ellipsis", "crop"] = "ellipsis" if out.unicode else "crop"
    for title in ("RUN", "JOB", "TRY", "STATE", "STARTED", "TIME", ""):
        right = title in ("TRY", "TIME")
        tight = title in ("TRY", "STATE", "TIME", "STARTED")
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "", overflow=overflow,
                         min_width=None if not tight else len(title))  # fmt: skip
    for run, job, attempt, state, started, took, why in rows:
        started = words.without_today(started)
        table.add_row(*map(Text, (run, job, attempt)), _state(state, out), *map(Text, (started, took, why)))
    return table
