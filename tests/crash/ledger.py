"""The ground truth: what the jobs themselves say they have done, one line each, in the order it happened.

A line is one write to a file opened for appending, so lines neither mix nor get lost, and their order is
the order of the facts. Nothing of jobd is involved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: Sourced by every job. `say` writes a line, `exit_as` tells the exit code and then uses it.
JOB_SH = """\
say() { read -r now _ < /proc/uptime; echo "$1 $JOBD_RUN $JOBD_JOB $JOBD_ATTEMPT $$ $now ${2--}" >> ledger; }
exit_as() { echo bye; say exits "$1"; exit "$1"; }
pick() {
    n=$JOBD_ATTEMPT
    while [ "$n" -gt 1 ] && [ $# -gt 1 ]; do shift; n=$((n - 1)); done
    code=$1
}
"""

#: An attempt as jobs know it: run, job, number.
Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Line:
    """`what`: began, exits (`value` is the code), killed (by itself; the signal) or left (a background process ends).

    `at`: seconds since boot. `place`: the number of the line in the ledger.
    """

    what: str
    key: Key
    pid: int
    at: float
    value: int | None
    place: int

    def __str__(self) -> str:
        run, job, attempt = self.key
        value = "" if self.value is None else f" {self.value}"
        return f"{self.what}{value}: {run} {job} attempt {attempt}, pid {self.pid}"


def read(path: Path) -> list[Line]:
    """All lines so far. A missing file is an empty ledger."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [_parse(line, place) for place, line in enumerate(text.splitlines())]


def _parse(text: str, place: int) -> Line:
    what, run, job, attempt, pid, at, value = text.split()
    return Line(what, (run, job, int(attempt)), int(pid), float(at), None if value == "-" else int(value), place)


def by_attempt(lines: Iterable[Line]) -> dict[Key, list[Line]]:
    """The lines of each attempt, in order."""
    found: dict[Key, list[Line]] = {}
    for line in lines:
        found.setdefault(line.key, []).append(line)
    return found
