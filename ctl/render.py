"""Tables for people, by rich. Imported only when a person looks.

Values in, renderables or text out; reads nothing. Text from elsewhere goes through `words.clean` into
`Text`, so neither rich's markup nor terminal escapes in it have any effect. Every state has a sign and a
word, so nothing is told by colour alone; the colours are the terminal's own and do on light and dark.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
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
#: With less room than this for what is to be said about a job, nothing is said.
MIN_NOTE_WIDTH = 16
#: Columns that are nice to have come only if this much is left for it.
GOOD_NOTE_WIDTH = 48
GAP = 2

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


#: Column titles in their order.
_TITLES = dict(
    zip(
        ("job", "state", "attempt", "time", "started", "pid", "data", "note"),
        ("JOB", "STATE", "TRY", "TIME", "STARTED", "PID", "DATA", ""),
        strict=True,
    )
)
_RIGHT = frozenset({"attempt", "time", "pid", "data"})
_NICE_TO_HAVE = frozenset({"started", "pid", "data"})


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
    picture = _groups(chosen, out, width, hint="; --all shows them", folds=True)
    news = words.daemon_news(result)
    return Group(Text(f"jobd: {news}\n", style="bold red"), picture) if news else picture


def board(result: Record, out: Output, age_s: float, max_lines: int) -> Group:
    """The same for the live board: as many jobs as there are lines, those first that need a look."""
    width = shutil.get_terminal_size().columns
    groups = words.by_run(result)
    everything = [job for _run, jobs in groups for job in jobs]
    headings = sum(_heading(run, jobs, out, width).plain.count("\n") + 2 for run, jobs in groups)
    max_rows = max_lines - headings
    if len(everything) > max_rows:
        max_rows -= len(groups)  # each may need a line for the rest
    kept = {id(job) for job in _most_urgent(everything, max(0, max_rows))}
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
    cells = {id(job): _cells(job, out, age_s) for _run, _jobs, rows in groups for job in rows}
    layout = _layout(cells.values(), width)
    parts: list[RenderableType] = []
    for run, jobs, rows in groups:
        titled = not parts  # the columns are the same for all
        if parts:
            parts.append(Text())
        parts.append(_heading(run, jobs, out, width))
        if rows:
            parts.append(_table([(job, cells[id(job)]) for job in rows], layout, out, titled=titled, folds=folds))
        if len(rows) < len(jobs):
            rest = words.counted(words.counts(job for job in jobs if all(job is not row for row in rows)))
            parts.append(Text(f"  and {len(jobs) - len(rows)} more: {rest}{hint}", style="dim"))
    return Group(*parts)


def _state(state: str, out: Output) -> Text:
    return Text(f"{words.sign(state, unicode=out.unicode)} {state}", style=_STYLES.get(state, ""))


def _heading(run: Record, jobs: list[Record], out: Output, width: int) -> Text:
    """What the run is and how it stands, in as many lines as the width asks for."""
    name = Text(words.clean(run["run"] or run["dag"]), style="bold")
    if run["run"] is None:
        return Text("  ").join([name, Text("no run yet", style="dim")])
    facts = [run.get("trigger") and f"by {run['trigger']}"]
    facts.append(run.get("started_at") and f"since {words.short_time(run['started_at'])}")
    facts.append(run.get("started_at") and words.duration(words.run_duration(run)))
    parts = [name, _state(run["state"], out), Text(", ".join(filter(None, facts)))]
    if len(jobs) > 1:
        tally = words.counts(jobs).items()
        parts.append(Text("  ").join(Text(f"{number} {state}", _STYLES.get(state, "")) for state, number in tally))
    heading, used = Text(), 0
    for part in parts:
        fits = used + GAP + part.cell_len <= width
        heading.append(" " * GAP if used and fits else f"\n{' ' * GAP}" if used else "")
        heading.append_text(part)
        used = (used if fits else 0) + GAP + part.cell_len
    return heading


def _layout(rows: Iterable[dict[str, Text]], width: int) -> dict[str, int | None]:
    """Which columns there are, and their widths (None: the rest), the same for all tables.

    The job and its state come first, then a few words about it, then the rest as far as there is room.
    """
    natural = {key: len(title) for key, title in _TITLES.items()}
    filled = {"job", "state"}
    for cells in rows:
        for key, cell in cells.items():
            natural[key] = max(natural[key], cell.cell_len)
            if cell.plain:
                filled.add(key)
    natural["job"] = min(natural["job"], int(width * MAX_JOB_SHARE))
    natural["time"] = max(natural["time"], 6)  # it grows while one looks
    chosen = {"job", "state"}
    left = width - GAP - natural["job"] - GAP - natural["state"] - GAP
    notes = "note" in filled and left >= MIN_NOTE_WIDTH
    if notes:
        chosen.add("note")
        left -= MIN_NOTE_WIDTH
    for key in ("time", "attempt", "started", "data", "pid"):
        spare = GOOD_NOTE_WIDTH - MIN_NOTE_WIDTH if notes and key in _NICE_TO_HAVE else 0
        if key in filled and natural[key] + GAP + spare <= left:
            chosen.add(key)
            left -= natural[key] + GAP
    return {key: None if key == "note" else natural[key] for key in _TITLES if key in chosen}


def _table(
    rows: list[tuple[Record, dict[str, Text]]],
    layout: dict[str, int | None],
    out: Output,
    *,
    titled: bool,
    folds: bool,
) -> Padding:
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim", show_header=titled,
                  expand="note" in layout)  # fmt: skip
    for key, width in layout.items():
        justify: Literal["left", "right"] = "right" if key in _RIGHT else "left"
        table.add_column(Text(_TITLES[key]), width=width, ratio=None if width else 1, justify=justify)
    for job, cells in rows:
        table.add_row(*(_fit(cells[key], key, job, out, folds=folds) for key in layout))
    return Padding(table, (0, 0, 0, GAP))


def _cells(job: Record, out: Output, age_s: float) -> dict[str, Text]:
    state = job["state"]
    return {
        "job": Text(words.clean(job["job"]), style="bold" if state in words.UNHAPPY | words.ACTIVE else ""),
        "state": _state(state, out),
        "attempt": Text(str(job.get("attempt") or "")),
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
