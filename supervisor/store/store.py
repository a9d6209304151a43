"""Writing what the engine decides, and reading it back."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from supervisor.core.events import DeleteAttempt, DeleteHold, Journal, Save, SaveAttempt, SaveHold, SaveNode, SaveRun
from supervisor.core.model import AT_REST, Attempt, Dag, Hold, JournalEntry, Node, Run, Snapshot
from supervisor.store.opening import StoreError, explained, open_database
from supervisor.store.rows import NonsenseError, Table, check_run, read_dag, read_record, read_run

log = logging.getLogger("jobd")

#: Answers kept for repeats of a request id; the oldest go first.
MAX_ANSWERS = 10_000
#: Rows that one query hands out.
MAX_ROWS = 10_000

_NODE, _ATTEMPT = Table("node", Node, "run_id, job"), Table("attempt", Attempt, "id", "boot")
_HOLD, _EVENT = Table("hold", Hold, "name"), Table("event", JournalEntry, "id")
_RUN_COLUMNS = 'id, name, dag, definition, run_date, "trigger", created_at, "after", started_at, finished_at'
_UPSERT_RUN = f"""INSERT INTO run ({_RUN_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
    definition = excluded.definition, "after" = excluded."after", started_at = excluded.started_at,
    finished_at = excluded.finished_at"""
_SELECT_ATTEMPTS = "SELECT attempt.*, run.name AS run, run.dag AS dag FROM attempt JOIN run ON run.id = attempt.run_id"

Read = TypeVar("Read")


class StorageError(Exception):
    """A commit failed, for now: the disk is full, or does not answer. Nothing of it was written."""


class Store:
    """Opens (and makes) the database at `path`. `boot` names this boot of the machine. Raises StoreError."""

    def __init__(self, path: Path, boot: str) -> None:
        self.path = path
        self._boot = boot
        self._digests: dict[int, tuple[Dag, str]] = {}
        self._dags: dict[str, Dag] = {}
        self._db = open_database(path)
        self._db.row_factory = sqlite3.Row

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
        self._write(_ATTEMPT, attempts, "DELETE FROM attempt WHERE id = ?", self._boot)
        self._write(_HOLD, holds, "DELETE FROM hold WHERE name = ?")
        self._db.executemany(_EVENT.upsert, map(_EVENT.row, events))

    def _write(self, table: Table, records: dict[Any, Any], delete: str, *fixed: str | None) -> None:
        rows = [(*table.row(record), *fixed) for record in records.values() if record is not None]
        self._db.executemany(table.upsert, rows)
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
        """What the engine needs at the start: unfinished runs and the newest of each dag, holds, the last ids.

        A run whose rows make no sense is left out; if it had not finished, its dag is held. Raises StoreError.
        """
        snapshot = Snapshot()
        query = "SELECT id FROM run WHERE finished_at IS NULL OR id IN (SELECT max(id) FROM run GROUP BY dag)"
        with explained(self.path):
            snapshot.holds = self._load_holds()
            for row in self._rows(query):
                try:
                    self._load_run(row["id"], snapshot)
                except NonsenseError as error:
                    self._leave_out(row["id"], str(error), snapshot)
            snapshot.last_event_id = self._last_id("event")
            snapshot.last_run_id = self._last_id("run")
            snapshot.last_attempt_id = self._last_id("attempt")
        return snapshot

    def load_run(self, name: str) -> Snapshot:
        """One run by its name; empty if there is none, or if its rows make no sense."""
        snapshot = Snapshot()
        for row in self._rows("SELECT id FROM run WHERE name = ?", (name,)):
            try:
                self._load_run(row["id"], snapshot)
            except NonsenseError as error:
                log.error("%s: run %s cannot be read: %s", self.path, name, error)
        return snapshot

    def has_run(self, name: str) -> bool:
        return self._db.execute("SELECT 1 FROM run WHERE name = ?", (name,)).fetchone() is not None

    def answer(self, request_id: str) -> bytes | None:
        """The encoded reply that a request id got before."""
        row = self._db.execute("SELECT body FROM answer WHERE request_id = ?", (request_id,)).fetchone()
        return row[0] if row else None

    def events(self, since: int, limit: int = MAX_ROWS) -> list[JournalEntry]:
        """Entries of the journal with ids above `since`, in order."""
        query = "SELECT * FROM event WHERE id > ? ORDER BY id LIMIT ?"
        rows = self._rows(query, (since, min(limit, MAX_ROWS)))
        return [*self._sensible(rows, lambda row: read_record(JournalEntry, row))]

    def history(self, names: tuple[str, ...], limit: int, since: float = 0.0) -> list[tuple[Attempt, str, str]]:
        """Newest attempts first, with the names of run and dag; `names` of jobs or dags, none = all."""
        marks = ", ".join("?" * len(names))
        where = f"(attempt.job IN ({marks}) OR run.dag IN ({marks})) AND" if names else ""
        query = f"{_SELECT_ATTEMPTS} WHERE {where} attempt.started_at >= ? ORDER BY attempt.id DESC LIMIT ?"
        rows = self._rows(query, (*names, *names, since, min(limit, MAX_ROWS)))
        return [*self._sensible(rows, _attempt)]

    def attempt(self, job: str, run: str | None, number: int | None) -> tuple[Attempt, str, str] | None:
        """An attempt of a job with the names of its run and dag: by run's name and number, each None = the newest."""
        query = f"{_SELECT_ATTEMPTS} WHERE attempt.job = ?"
        values: list[Any] = [job]
        if run is not None:
            query, values = f"{query} AND run.name = ?", [*values, run]
        if number is not None:
            query, values = f"{query} AND attempt.number = ?", [*values, number]
        rows = self._rows(f"{query} ORDER BY attempt.id DESC LIMIT 1", tuple(values))
        return next(self._sensible(rows, _attempt), None)

    def boots(self, attempt_ids: Iterable[int]) -> dict[int, str | None]:
        """In which boot of the machine each attempt was first committed; None = unknown (by a jobd of version 0.1)."""
        query = "SELECT id, boot FROM attempt WHERE id = ?"
        return {row["id"]: row["boot"] for each in attempt_ids for row in self._rows(query, (each,))}

    def settled(self, attempt_ids: Iterable[int]) -> list[int]:
        """Those of them that have ended, or that were taken back: nothing more is to be found out about them."""
        query = "SELECT state FROM attempt WHERE id = ?"
        states = {attempt_id: self._rows(query, (attempt_id,)) for attempt_id in attempt_ids}
        return [attempt_id for attempt_id, rows in states.items() if not rows or rows[0]["state"] in AT_REST]

    def unheard_of(self, attempt_ids: Iterable[int]) -> list[int]:
        """Those above all that were ever given: commits were lost since, say with a removed -wal."""
        last_id = self._last_id("attempt")
        return sorted(attempt_id for attempt_id in attempt_ids if attempt_id > last_id)

    def _last_id(self, table: str) -> int:
        # Not max(id): an id is never given twice, even if its row was deleted.
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return row[0] if row else 0

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        return self._db.execute(query, values).fetchall()

    def _sensible(self, rows: Iterable[sqlite3.Row], read: Callable[[sqlite3.Row], Read]) -> Iterator[Read]:
        """A row that makes no sense must not hide the others."""
        for row in rows:
            try:
                yield read(row)
            except NonsenseError as error:
                log.error("%s: %s; it is left out", self.path, error)

    def _load_holds(self) -> list[Hold]:
        try:
            return [read_record(Hold, row) for row in self._rows("SELECT * FROM hold")]
        except NonsenseError as error:  # without it, something would start that must not
            raise StoreError(
                f"{self.path}: {error}; correct or delete that row with sqlite3, then start again"
            ) from error

    def _load_run(self, run_id: int, snapshot: Snapshot) -> None:
        """Add all of a run, or nothing. Raises NonsenseError."""
        try:
            [row] = self._rows("SELECT * FROM run WHERE id = ?", (run_id,))
            node_rows = self._rows("SELECT * FROM node WHERE run_id = ?", (run_id,))
            newest = "SELECT * FROM attempt WHERE id IN (SELECT attempt_id FROM node WHERE run_id = ?)"
            attempt_rows = self._rows(newest, (run_id,))
        except sqlite3.OperationalError as error:
            if hasattr(error, "sqlite_errorcode"):
                raise
            raise NonsenseError(str(error)) from error  # not UTF-8
        run = read_run(row, self._read_definition(row["definition"]))
        nodes = [read_record(Node, each) for each in node_rows]
        attempts = [read_record(Attempt, each) for each in attempt_rows]
        check_run(run.dag, nodes, attempts)
        snapshot.runs.append(run)
        snapshot.nodes += nodes
        snapshot.attempts += attempts

    def _read_definition(self, digest: str) -> Dag:
        dag = self._dags.get(digest)
        if dag is None:
            rows = self._rows("SELECT body FROM definition WHERE digest = ?", (digest,))
            dag = self._dags[digest] = read_dag(digest, rows[0]["body"] if rows else None)
            self._remember(dag, digest)
        return dag

    def _leave_out(self, run_id: int, why: str, snapshot: Snapshot) -> None:
        """One bad row must not stop everything; but what it may have started must not be started again."""
        [row] = self._rows("SELECT name, dag, finished_at FROM run WHERE id = ?", (run_id,))
        name, dag = row["name"], row["dag"]
        if not str(name).startswith(f"{dag}@"):
            raise StoreError(
                f"{self.path}: row {run_id} of table run makes no sense; correct or delete it with sqlite3"
            )
        log.error(
            "%s: run %s cannot be read and is left out: %s; correct it with sqlite3 and start again",
            self.path,
            name,
            why,
        )
        if row["finished_at"] is None and all(hold.name != dag for hold in snapshot.holds):
            reason = f"run {name} cannot be read, and its jobs may still run: {why}"
            snapshot.holds.append(Hold(name=dag, by="jobd", at=time.time(), reason=reason))


def _attempt(row: sqlite3.Row) -> tuple[Attempt, str, str]:
    return read_record(Attempt, row), row["run"], row["dag"]
