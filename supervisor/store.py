"""The embedded database: all durable state, loaded at the start, one transaction a turn.

Owns STATE/jobd.db. One connection in one process: SQLite in WAL mode with synchronous=FULL, so a
commit that returned survives a power cut. Knows the records of core.model, not the rules. The
columns of a table bear the names of its record's fields. Called by the daemon only.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from supervisor.core.events import (
    DeleteAttempt,
    DeleteHold,
    Journal,
    Save,
    SaveAttempt,
    SaveHold,
    SaveNode,
    SaveRun,
)
from supervisor.core.model import Attempt, Dag, Hold, JournalEntry, Node, Run, Snapshot

SCHEMA_VERSION = 1
#: Answers kept for repeats of a request id; the oldest go first.
MAX_ANSWERS = 10_000
#: Rows that one query hands out.
MAX_ROWS = 10_000

_SCHEMA = """
CREATE TABLE definition (digest TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE run (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, dag TEXT NOT NULL,
    definition TEXT NOT NULL REFERENCES definition, run_date TEXT NOT NULL, "trigger" TEXT NOT NULL,
    created_at REAL NOT NULL, "after" INTEGER, started_at REAL, finished_at REAL);
CREATE INDEX run_by_dag ON run (dag, id);
CREATE INDEX run_unfinished ON run (id) WHERE finished_at IS NULL;
CREATE TABLE node (
    run_id INTEGER NOT NULL, job TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
    attempts INTEGER NOT NULL, attempt_id INTEGER, tries INTEGER NOT NULL, retry_at REAL, forced INTEGER NOT NULL,
    again INTEGER NOT NULL, by_operator INTEGER NOT NULL, PRIMARY KEY (run_id, job)) WITHOUT ROWID;
CREATE TABLE attempt (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run_id INTEGER NOT NULL, job TEXT NOT NULL, number INTEGER NOT NULL,
    state TEXT NOT NULL, log TEXT NOT NULL, started_at REAL NOT NULL, reason TEXT NOT NULL, exit_code INTEGER,
    signal INTEGER, finished_at REAL, duration_s REAL, cpu_s REAL, max_rss_bytes INTEGER,
    log_dropped_bytes INTEGER NOT NULL, reported TEXT, message TEXT NOT NULL, data INTEGER);
CREATE INDEX attempt_by_job ON attempt (job, id);
CREATE TABLE hold (
    name TEXT PRIMARY KEY, by TEXT NOT NULL, at REAL NOT NULL, reason TEXT NOT NULL, until REAL) WITHOUT ROWID;
CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, run TEXT, dag TEXT, job TEXT,
    attempt INTEGER, text TEXT NOT NULL, by TEXT);
CREATE TABLE answer (request_id TEXT PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL);
"""

Record = TypeVar("Record", Run, Node, Attempt, Hold, JournalEntry)


class StoreError(Exception):
    """The database cannot be used; the message names the file and what to do."""


class StorageError(Exception):
    """A commit failed, for now: the disk is full, or does not answer. Nothing of it was written."""


class _Table:
    """Writes one kind of record; its columns are the record's fields."""

    def __init__(self, name: str, record: type[Record], key: str) -> None:
        columns = [field.name for field in fields(record)]
        marks = ", ".join("?" * len(columns))
        changes = ", ".join(f"{column} = excluded.{column}" for column in columns)
        insert = f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})"
        self.upsert = f"{insert} ON CONFLICT ({key}) DO UPDATE SET {changes}"
        self.row: Callable[[Any], tuple[Any, ...]] = attrgetter(*columns)


_NODE, _ATTEMPT = _Table("node", Node, "run_id, job"), _Table("attempt", Attempt, "id")
_HOLD, _EVENT = _Table("hold", Hold, "name"), _Table("event", JournalEntry, "id")
_RUN_COLUMNS = 'id, name, dag, definition, run_date, "trigger", created_at, "after", started_at, finished_at'
_UPSERT_RUN = f"""INSERT INTO run ({_RUN_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
    definition = excluded.definition, "after" = excluded."after", started_at = excluded.started_at,
    finished_at = excluded.finished_at"""
_SELECT_ATTEMPTS = "SELECT attempt.*, run.name AS run, run.dag AS dag FROM attempt JOIN run ON run.id = attempt.run_id"


class Store:
    """Opens (and makes) the database at `path`. Raises StoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digests: dict[int, tuple[Dag, str]] = {}
        self._dags: dict[str, Dag] = {}
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._open()
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{path}: cannot be read as jobd's database: {error}; restore it from a backup") from error

    def _open(self) -> None:
        [version] = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path}: is of schema version {version}, this jobd knows {SCHEMA_VERSION}; run the newer jobd"
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")

    def close(self) -> None:
        self._db.close()

    # ---- writing -----------------------------------------------------------------------------

    def commit(self, saves: Iterable[Save], answers: Iterable[tuple[str, float, bytes]] = ()) -> None:
        """Write all of it in one transaction, durable when this returns. Raises StorageError; nothing is written then.

        `answers`: (request id, epoch seconds, encoded reply) to be given again if the request is repeated.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._write_all(saves)
            self._write_answers(list(answers))
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._digests.clear()  # a definition may have been rolled back too
            if isinstance(error, sqlite3.OperationalError):
                raise StorageError(f"{self.path} cannot be written: {error}") from error
            raise

    def _write_all(self, saves: Iterable[Save]) -> None:
        """Each record once, as it is now."""
        runs: dict[int, Run] = {}
        nodes: dict[int, Node] = {}
        attempts: dict[int, Attempt | None] = {}
        holds: dict[str, Hold | None] = {}
        events: list[JournalEntry] = []
        for save in saves:
            match save:
                case SaveNode(node):
                    nodes[id(node)] = node
                case Journal(entry):
                    events.append(entry)
                case SaveAttempt(attempt):
                    attempts[attempt.id] = attempt
                case SaveRun(run):
                    runs[run.id] = run
                case DeleteAttempt(attempt_id):
                    attempts[attempt_id] = None
                case SaveHold(hold):
                    holds[hold.name] = hold
                case DeleteHold(name):
                    holds[name] = None
        self._write_runs(runs.values())
        self._db.executemany(_NODE.upsert, map(_NODE.row, nodes.values()))
        self._write(_ATTEMPT, attempts, "DELETE FROM attempt WHERE id = ?")
        self._write(_HOLD, holds, "DELETE FROM hold WHERE name = ?")
        self._db.executemany(_EVENT.upsert, map(_EVENT.row, events))

    def _write(self, table: _Table, records: dict[Any, Any], delete: str) -> None:
        self._db.executemany(table.upsert, [table.row(record) for record in records.values() if record is not None])
        gone = [(key,) for key, record in records.items() if record is None]
        if gone:
            self._db.executemany(delete, gone)

    def _write_runs(self, runs: Iterable[Run]) -> None:
        for run in runs:
            self._db.execute(
                _UPSERT_RUN,
                (
                    run.id,
                    run.name,
                    run.dag.name,
                    self._write_definition(run.dag),
                    run.run_date,
                    run.trigger,
                    run.created_at,
                    run.after,
                    run.started_at,
                    run.finished_at,
                ),
            )

    def _write_definition(self, dag: Dag) -> str:
        """A run keeps the definitions it began with; runs with equal ones share a row."""
        known = self._digests.get(id(dag))
        if known is not None:
            return known[1]
        body = msgspec.json.encode(dag)
        digest = hashlib.sha256(body).hexdigest()
        self._db.execute("INSERT OR IGNORE INTO definition (digest, body) VALUES (?, ?)", (digest, body))
        self._remember(dag, digest)
        return digest

    def _remember(self, dag: Dag, digest: str) -> None:
        # The dag is kept with its digest, so that its id() cannot be given to another one.
        self._digests[id(dag)] = (dag, digest)

    def _write_answers(self, answers: list[tuple[str, float, bytes]]) -> None:
        if answers:
            self._db.executemany("INSERT OR IGNORE INTO answer (request_id, at, body) VALUES (?, ?, ?)", answers)
            self._db.execute("DELETE FROM answer WHERE rowid <= (SELECT max(rowid) FROM answer) - ?", (MAX_ANSWERS,))

    # ---- reading -----------------------------------------------------------------------------

    def load(self) -> Snapshot:
        """What the engine needs at the start: unfinished runs and the newest of each dag, holds, the last ids."""
        snapshot = self._load_runs(
            "SELECT * FROM run WHERE finished_at IS NULL OR id IN (SELECT max(id) FROM run GROUP BY dag)"
        )
        snapshot.holds = [_record(Hold, row) for row in self._db.execute("SELECT * FROM hold")]
        snapshot.last_event_id = self._last_id("event")
        snapshot.last_run_id = self._last_id("run")
        snapshot.last_attempt_id = self._last_id("attempt")
        return snapshot

    def load_run(self, name: str) -> Snapshot:
        """One run by its name; empty if there is none."""
        return self._load_runs("SELECT * FROM run WHERE name = ?", (name,))

    def has_run(self, name: str) -> bool:
        return self._db.execute("SELECT 1 FROM run WHERE name = ?", (name,)).fetchone() is not None

    def answer(self, request_id: str) -> bytes | None:
        """The encoded reply that a request id got before."""
        row = self._db.execute("SELECT body FROM answer WHERE request_id = ?", (request_id,)).fetchone()
        return row[0] if row else None

    def events(self, since: int, limit: int = MAX_ROWS) -> list[JournalEntry]:
        """Entries of the journal with ids above `since`, in order."""
        query = "SELECT * FROM event WHERE id > ? ORDER BY id LIMIT ?"
        return [_record(JournalEntry, row) for row in self._db.execute(query, (since, min(limit, MAX_ROWS)))]

    def history(self, names: tuple[str, ...], limit: int, since: float = 0.0) -> list[tuple[Attempt, str, str]]:
        """Newest attempts first, with the names of run and dag; `names` of jobs or dags, none = all."""
        marks = ", ".join("?" * len(names))
        where = f"(attempt.job IN ({marks}) OR run.dag IN ({marks})) AND" if names else ""
        query = f"{_SELECT_ATTEMPTS} WHERE {where} attempt.started_at >= ? ORDER BY attempt.id DESC LIMIT ?"
        rows = self._db.execute(query, (*names, *names, since, min(limit, MAX_ROWS)))
        return [_attempt(row) for row in rows]

    def attempt(self, job: str, run: str | None, number: int | None) -> tuple[Attempt, str, str] | None:
        """An attempt of a job with the names of its run and dag: by run's name and number, each None = the newest."""
        query = f"{_SELECT_ATTEMPTS} WHERE attempt.job = ?"
        values: list[Any] = [job]
        if run is not None:
            query, values = f"{query} AND run.name = ?", [*values, run]
        if number is not None:
            query, values = f"{query} AND attempt.number = ?", [*values, number]
        row = self._db.execute(f"{query} ORDER BY attempt.id DESC LIMIT 1", values).fetchone()
        return _attempt(row) if row else None

    def _last_id(self, table: str) -> int:
        # Not max(id): an id is never given twice, even if its row was deleted.
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return row[0] if row else 0

    def _load_runs(self, query: str, values: tuple[Any, ...] = ()) -> Snapshot:
        snapshot = Snapshot()
        for row in self._db.execute(query, values).fetchall():
            known = {key: row[key] for key in row.keys() if key not in ("dag", "definition")}  # noqa: SIM118
            run = msgspec.convert({**known, "dag": _NO_DAG}, Run, strict=False)
            run.dag = self._read_definition(row["definition"])
            snapshot.runs.append(run)
            of_run = (run.id,)
            nodes = self._db.execute("SELECT * FROM node WHERE run_id = ?", of_run)
            snapshot.nodes += [_record(Node, each) for each in nodes]
            newest = "SELECT * FROM attempt WHERE id IN (SELECT attempt_id FROM node WHERE run_id = ?)"
            snapshot.attempts += [_record(Attempt, each) for each in self._db.execute(newest, of_run)]
        return snapshot

    def _read_definition(self, digest: str) -> Dag:
        dag = self._dags.get(digest)
        if dag is None:
            row = self._db.execute("SELECT body FROM definition WHERE digest = ?", (digest,)).fetchone()
            dag = self._dags[digest] = msgspec.json.decode(row[0], type=Dag)
            self._remember(dag, digest)
        return dag


_NO_DAG = {"name": ""}


def _record(record: type[Record], row: sqlite3.Row) -> Record:
    return msgspec.convert(dict(row), record, strict=False)


def _attempt(row: sqlite3.Row) -> tuple[Attempt, str, str]:
    columns = dict(row)
    run, dag = columns.pop("run"), columns.pop("dag")
    return msgspec.convert(columns, Attempt, strict=False), run, dag
