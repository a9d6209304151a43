"""The tables, and how each older version of them becomes the next. Data only.

The columns of a table bear the names of its record's fields; `attempt.boot` alone is the store's own.

To change a table: raise SCHEMA_VERSION, change SCHEMA, and give MIGRATIONS the script that does the same
to a database of the version before. A released script is never changed.
"""

from __future__ import annotations

SCHEMA_VERSION = 2

SCHEMA = """
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
    log_dropped_bytes INTEGER NOT NULL, reported TEXT, message TEXT NOT NULL, data INTEGER,
    boot TEXT);
CREATE INDEX attempt_by_job ON attempt (job, id);
CREATE TABLE hold (
    name TEXT PRIMARY KEY, by TEXT NOT NULL, at REAL NOT NULL, reason TEXT NOT NULL, until REAL) WITHOUT ROWID;
CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, run TEXT, dag TEXT, job TEXT,
    attempt INTEGER, text TEXT NOT NULL, by TEXT);
CREATE TABLE answer (request_id TEXT PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL);
"""

#: Version -> the script that makes the next one of it. All that are needed run in one transaction.
MIGRATIONS = {
    # Which boot of the machine an attempt was first committed in; unknown for those that are there.
    1: "ALTER TABLE attempt ADD COLUMN boot TEXT;",
}
