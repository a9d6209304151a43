"""Records as rows of their tables, and back. A row that makes no sense is a NonsenseError that names it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from supervisor.core.model import ACTIVE, Attempt, Dag, Hold, JournalEntry, Node, Run

Record = TypeVar("Record", Run, Node, Attempt, Hold, JournalEntry)


class NonsenseError(Exception):
    """A row that no jobd of this version can have written; the message says which, and what is wrong with it."""


class Table:
    """Writes one kind of record; its columns are the record's fields."""

    def __init__(self, name: str, record: type[Record], key: str, *fixed: str) -> None:
        """`fixed`: columns that are no fields, come last in a row, and stay as they were first written."""
        columns: list[str] = [field.name for field in fields(record)]
        marks = ", ".join("?" * len([*columns, *fixed]))
        changes = ", ".join(f"{column} = excluded.{column}" for column in columns)
        insert = f"INSERT INTO {name} ({', '.join([*columns, *fixed])}) VALUES ({marks})"
        self.upsert = f"{insert} ON CONFLICT ({key}) DO UPDATE SET {changes}"
        self.row: Callable[[Any], tuple[Any, ...]] = attrgetter(*columns)


def read_record(record: type[Record], row: sqlite3.Row) -> Record:
    """Raises NonsenseError."""
    try:
        return msgspec.convert(dict(row), record, strict=False)
    except msgspec.ValidationError as error:
        key = ", ".join(str(value) for value in tuple(row)[:2])
        raise NonsenseError(f"the {record.__name__.lower()} ({key}, …) makes no sense: {error}") from error


def read_run(row: sqlite3.Row, dag: Dag) -> Run:
    columns = {key: row[key] for key in row.keys() if key not in ("dag", "definition")}  # noqa: SIM118
    try:
        run = msgspec.convert({**columns, "dag": {"name": ""}}, Run, strict=False)
    except msgspec.ValidationError as error:
        raise NonsenseError(f"its own row makes no sense: {error}") from error
    run.dag = dag
    return run


def read_dag(digest: str, body: bytes | None) -> Dag:
    if body is None:
        raise NonsenseError(f"its definition {digest} is missing")
    try:
        return msgspec.json.decode(body, type=Dag)
    except msgspec.MsgspecError as error:
        raise NonsenseError(f"its definition {digest} makes no sense: {error}") from error


def check_run(dag: Dag, nodes: list[Node], attempts: list[Attempt]) -> None:
    """What the engine takes for granted when it goes on with a run. Raises NonsenseError."""
    names = {job.name for job in dag.jobs}
    if names != {node.job for node in nodes}:
        raise NonsenseError("its rows are not those of its jobs")
    if not names.issuperset(need.job for job in dag.jobs for group in job.needs for need in group):
        raise NonsenseError("a job needs another that is not there")
    known = {attempt.id: attempt for attempt in attempts}
    for node in nodes:
        attempt = known.get(node.attempt_id or 0)
        if node.attempt_id is not None and (
            attempt is None or (attempt.run_id, attempt.job) != (node.run_id, node.job)
        ):
            raise NonsenseError(f"the newest attempt of {node.job} is not there")
        # Else an attempt that has ended would be thought never to have begun, and one that runs be left alone.
        if (node.state in ACTIVE) != (attempt is not None and attempt.state in ACTIVE):
            found = attempt.state if attempt else "not there"
            raise NonsenseError(f"{node.job} is {node.state}, its newest attempt {found}")
