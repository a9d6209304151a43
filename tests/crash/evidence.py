"""What jobd has recorded: read from a copy of its database, read only, after it has left."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from tests.crash.casualties import Casualties
from tests.crash.dags import Setup
from tests.crash.ledger import Key, Line
from tests.crash.operator import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A row of an attempt, with the name of its run."""

    id: int
    run: str
    job: str
    number: int
    state: str
    reason: str
    exit_code: int | None
    signal: int | None
    duration_s: float | None
    log: str

    @property
    def key(self) -> Key:
        return self.run, self.job, self.number

    @property
    def final(self) -> tuple[object, ...]:
        """What must never change once the attempt is over."""
        return self.state, self.reason, self.exit_code, self.signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An entry of the journal."""

    id: int
    at: float
    kind: str
    run: str | None
    job: str | None
    attempt: int | None
    text: str
    by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The state of one job in one run."""

    run: str
    job: str
    state: str
    attempts: int


@dataclass(slots=True)
class Evidence:
    """All that is known in the end: what the jobs say, what jobd says, who was killed, who asked for what."""

    setup: Setup
    lines: list[Line]
    attempts: list[Attempt]
    nodes: list[Node]
    events: list[Event]
    casualties: Casualties
    orders: list[Order] = field(default_factory=list)
    logs: Path | None = None


Row = TypeVar("Row", Attempt, Event, Node)


def read_database(path: Path, copy: Path) -> tuple[list[Attempt], list[Node], list[Event]]:
    """Attempts, nodes and journal. Raises ValueError if the database is damaged."""
    copy.mkdir()
    for part in path.parent.glob(f"{path.name}*"):
        shutil.copy(part, copy)
    database = sqlite3.connect(copy / path.name)
    try:
        [(verdict,)] = database.execute("PRAGMA integrity_check").fetchall()
        if verdict != "ok":
            raise ValueError(f"{path} is damaged: {verdict}")
        database.row_factory = sqlite3.Row
        attempts = _rows(database, Attempt, "attempt JOIN run ON run.id = run_id ORDER BY attempt.id")
        nodes = _rows(database, Node, "node JOIN run ON run.id = run_id")
        return attempts, nodes, _rows(database, Event, "event ORDER BY event.id")
    finally:
        database.close()


def _rows(database: sqlite3.Connection, kind: type[Row], source: str) -> list[Row]:
    table = source.split()[0]
    names = [each.name for each in fields(kind)]
    columns = ["run.name" if name == "run" and table != "event" else f"{table}.{name}" for name in names]
    found: list[Any] = database.execute(f"SELECT {', '.join(columns)} FROM {source}").fetchall()
    return [kind(**dict(zip(names, row, strict=True))) for row in found]
