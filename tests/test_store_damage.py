"""A database that is damaged, newer or not jobd's is refused and left as it is; a bad row costs its run only."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.core.events import Journal, SaveAttempt, SaveHold, SaveNode, SaveRun
from supervisor.core.model import (
    Attempt,
    Dag,
    Hold,
    Job,
    JournalEntry,
    Need,
    Node,
    Run,
    State,
    Trigger,
)
from supervisor.store import Store, StoreError, opening

PAGE = 4096


def make_dag(name: str) -> Dag:
    first = Job(name=f"{name}-first", dag=name, command="true", dir="/")
    then = Job(name=f"{name}-then", dag=name, command="true", dir="/", needs=((Need(first.name),),))
    return Dag(name=name, jobs=(first, then))


def fill(store: Store) -> None:
    """A dag of two jobs, one of them running, in an unfinished run each, and enough events to fill some pages."""
    for run_id, name in enumerate(("hourly", "nightly"), 1):
        dag = make_dag(name)
        run = Run(id=run_id, name=f"{name}@1", dag=dag, run_date="2026-11-23", trigger=Trigger.COMMAND, created_at=5.0)
        first, then = dag.jobs
        store.commit(
            [
                SaveRun(run),
                SaveNode(Node(run_id=run_id, job=first.name, state=State.RUNNING, attempts=1, attempt_id=run_id)),
                SaveNode(Node(run_id=run_id, job=then.name, state=State.QUEUED)),
                SaveAttempt(
                    Attempt(
                        id=run_id,
                        run_id=run_id,
                        job=first.name,
                        number=1,
                        state=State.RUNNING,
                        log="x.log",
                        started_at=6.0,
                    )
                ),
            ]
        )
    store.commit([SaveHold(Hold(name="someone's", by="me", at=1.0))])
    store.commit([Journal(JournalEntry(id=number, at=1.0, kind="queued", text="x" * 50)) for number in range(1, 500)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database that was closed: no -wal."""
    store = Store(tmp_path / "jobd.db", "boot")
    fill(store)
    store.close()
    return tmp_path / "jobd.db"


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A database as a jobd that was killed leaves it: the latest commits are in its -wal."""
    (tmp_path / "other").mkdir()
    with contextlib.closing(Store(tmp_path / "other" / "jobd.db", "boot")) as store:
        fill(store)
        for name in ("jobd.db", "jobd.db-wal"):
            shutil.copy(tmp_path / "other" / name, tmp_path)
    assert (tmp_path / "jobd.db-wal").stat().st_size > 0
    return tmp_path / "jobd.db"


def files(path: Path) -> dict[str, bytes]:
    """Everything beside it too, but for the index that SQLite makes of a -wal."""
    return {each.name: each.read_bytes() for each in path.parent.glob("jobd.db*") if not each.name.endswith("-shm")}


def edit(path: Path, offset: int, new: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(new)


def refused(path: Path) -> str:
    """It is, and nothing has changed; the message."""
    before = files(path)
    with pytest.raises(StoreError) as caught:
        Store(path, "boot")
    assert files(path) == before
    assert str(path) in str(caught.value)
    return str(caught.value)


def execute(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)


# ---- the file --------------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[Path], object]] = {
    "header zeroed": lambda path: edit(path, 0, bytes(100)),
    "first page zeroed": lambda path: edit(path, 0, bytes(PAGE)),
    "cut in the middle": lambda path: os.truncate(path, path.stat().st_size // 2),
    "last page cut off": lambda path: os.truncate(path, path.stat().st_size - PAGE),
    "cut within a page": lambda path: os.truncate(path, path.stat().st_size - PAGE // 2),
    "empty": lambda path: os.truncate(path, 0),
    "a text": lambda path: path.write_text("not a database at all\n" * 500),
    "a page of noise": lambda path: edit(path, 3 * PAGE, random.Random(1).randbytes(PAGE)),
    "two pages exchanged": lambda path: edit(
        path, 2 * PAGE, path.read_bytes()[3 * PAGE : 4 * PAGE] + path.read_bytes()[2 * PAGE : 3 * PAGE]
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_and_left_alone(path: Path, damage: str) -> None:
    DAMAGES[damage](path)
    message = refused(path)
    assert "cannot be read as jobd's database" in message
    assert "put a backup in its place" in message


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in ("last page cut off", "cut within a page")])
def test_so_is_one_with_commits_in_its_log(killed: Path, damage: str) -> None:
    with contextlib.closing(sqlite3.connect(killed)) as db:  # most of it in the file, some in the log
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("INSERT INTO event (at, kind, text) VALUES (1.0, 'queued', '')")
        (killed.parent / "log").write_bytes(Path(f"{killed}-wal").read_bytes())
    (killed.parent / "log").rename(f"{killed}-wal")
    DAMAGES[damage](killed)
    refused(killed)


@pytest.mark.parametrize("seed", range(40))
def test_a_page_of_noise_anywhere_is_refused_or_was_empty(path: Path, seed: int) -> None:
    """Never opened with less than there was."""
    dice = random.Random(seed)
    with contextlib.closing(Store(path, "boot")) as store:
        snapshot, events = store.load(), store.events(0)
    edit(path, PAGE * dice.randrange(path.stat().st_size // PAGE), dice.randbytes(PAGE))
    try:
        refused(path)
    except pytest.fail.Exception:
        with contextlib.closing(Store(path, "boot")) as store:
            assert (store.load(), store.events(0)) == (snapshot, events)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_folder_or_a_fifo_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "jobd.db")
    assert "jobd.db: cannot be read as jobd's database: it is not a regular file" in refused_plainly(
        tmp_path / "jobd.db"
    )


def test_a_link_is_refused(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    assert "it is not a regular file" in refused_plainly(path)


@pytest.mark.skipif(os.getuid() == 0, reason="root may open everything")
def test_one_without_permission_is_refused(path: Path) -> None:
    path.chmod(0o400)
    assert "cannot be opened: Permission denied" in refused_plainly(path)


def refused_plainly(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        Store(path, "boot")
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_newer_one_is_refused_and_left_alone(path: Path) -> None:
    execute(path, "PRAGMA user_version = 99")
    assert "is of schema version 99, this jobd knows" in refused(path)


def test_a_newer_one_whose_version_is_in_its_log_is_refused_and_left_alone(killed: Path) -> None:
    with contextlib.closing(sqlite3.connect(killed)) as db:
        db.execute("PRAGMA user_version = 99")
        saved = files(killed)
    for name, content in saved.items():
        killed.with_name(name).write_bytes(content)
    assert "run the newer jobd" in refused(killed)
    assert len(files(killed)) == 2


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobd.db"
    execute(path, "CREATE TABLE phone (name TEXT, number TEXT)")
    assert "another program" in refused(path)


# ---- its log ---------------------------------------------------------------------------------------


def test_commits_in_the_log_are_there_after_a_kill(killed: Path) -> None:
    with contextlib.closing(Store(killed, "boot")) as store:
        assert len(store.load().runs) == 2
        assert len(store.events(0)) == 499


LOG_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "no log at all": lambda log: b"not a log at all\n" * 1000,
    "its magic number": lambda log: b"\0\0\0\0" + log[4:],
    "a bit of its head": lambda log: bytes([*log[:17], log[17] ^ 1, *log[18:]]),
    "another page size": lambda log: log[:8] + struct.pack(">I", 1024) + log[12:],
}


@pytest.mark.parametrize("damage", LOG_DAMAGES)
def test_a_log_that_sqlite_would_pass_over_is_refused_and_left_alone(killed: Path, damage: str) -> None:
    log_file = Path(f"{killed}-wal")
    log_file.write_bytes(LOG_DAMAGES[damage](log_file.read_bytes()))
    assert "jobd.db-wal, which holds its latest commits, is damaged or another database's" in refused(killed)


def test_the_log_of_another_database_is_refused_and_both_are_left_alone(path: Path) -> None:
    other = path.with_name("other.db")
    with contextlib.closing(sqlite3.connect(other)) as db:
        db.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (x);")
        db.executemany("INSERT INTO t VALUES (?)", [("y" * 1000,)] * 30)
        db.commit()
        shutil.copy(f"{other}-wal", f"{path}-wal")
    refused(path)


@pytest.mark.parametrize("head", [b"", bytes(10), bytes(4096)])
def test_a_log_that_was_just_begun_when_the_power_went_is_taken_for_empty(path: Path, head: bytes) -> None:
    Path(f"{path}-wal").write_bytes(head)
    with contextlib.closing(Store(path, "boot")) as store:
        assert len(store.load().runs) == 2


def test_a_log_whose_last_commit_was_cut_loses_that_one_only(killed: Path) -> None:
    os.truncate(f"{killed}-wal", Path(f"{killed}-wal").stat().st_size - 10)
    with contextlib.closing(Store(killed, "boot")) as store:
        assert len(store.load().holds) == 1
        assert store.events(0) == []


def test_a_log_without_its_database_is_refused_and_kept(killed: Path) -> None:
    killed.unlink()
    assert "is missing, but" in refused(killed)


def test_a_large_database_is_checked_in_its_vital_tables(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_CHECKED_BYTES", PAGE)
    Store(path, "boot").close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        [(root,)] = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'node'").fetchall()
    edit(path, (root - 1) * PAGE, random.Random(1).randbytes(PAGE))
    refused(path)


# ---- making a new one ------------------------------------------------------------------------------


def test_what_a_killed_start_left_of_a_new_database_is_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "jobd.db"
    (tmp_path / "jobd.db.new").write_bytes(b"half a database")
    (tmp_path / "jobd.db.new-journal").write_bytes(b"half a journal")
    with contextlib.closing(Store(path, "boot")) as store:
        fill(store)
        assert {each.name for each in tmp_path.iterdir()} == {"jobd.db", "jobd.db-wal", "jobd.db-shm"}


# ---- rows ------------------------------------------------------------------------------------------

NONSENSE = {
    "an unknown state": "UPDATE node SET state = 'sucdess' WHERE job = 'nightly-then'",
    "a number that is none": "UPDATE node SET attempts = 'many' WHERE job = 'nightly-then'",
    "text that is no text": "UPDATE node SET reason = CAST(x'ff00fe' AS TEXT) WHERE job = 'nightly-then'",
    "an unknown trigger": "UPDATE run SET \"trigger\" = '?' WHERE dag = 'nightly'",
    "no definition": "DELETE FROM definition WHERE digest = (SELECT definition FROM run WHERE dag = 'nightly')",
    "a broken definition": """UPDATE definition SET body = substr(body, 1, 50)
        WHERE digest = (SELECT definition FROM run WHERE dag = 'nightly')""",
    "a definition that needs what is not there": """UPDATE definition
        SET body = CAST(replace(body, '"job":"nightly-first"', '"job":"nobody"') AS BLOB)
        WHERE digest = (SELECT definition FROM run WHERE dag = 'nightly')""",
    "a job's row missing": "DELETE FROM node WHERE job = 'nightly-then'",
    "the attempt missing": "DELETE FROM attempt WHERE job = 'nightly-first'",
    "an attempt of another job": "UPDATE attempt SET job = 'hourly-first' WHERE job = 'nightly-first'",
    "an attempt in a state of its own": "UPDATE attempt SET state = '' WHERE job = 'nightly-first'",
    "an attempt that has ended of a job that runs": "UPDATE attempt SET state = 'failed' WHERE job = 'nightly-first'",
    "an attempt that runs of a job that has ended": "UPDATE node SET state = 'failed' WHERE job = 'nightly-first'",
}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_a_run_that_makes_no_sense_is_left_out_and_its_dag_held(
    path: Path, nonsense: str, caplog: pytest.LogCaptureFixture
) -> None:
    execute(path, NONSENSE[nonsense])
    with caplog.at_level(logging.ERROR, "jobd"), contextlib.closing(Store(path, "boot")) as store:
        snapshot = store.load()
    assert [run.name for run in snapshot.runs] == ["hourly@1"]
    assert {node.run_id for node in snapshot.nodes} == {attempt.run_id for attempt in snapshot.attempts} == {1}
    assert [hold.name for hold in snapshot.holds] == ["someone's", "nightly"]
    assert "run nightly@1 cannot be read, and its jobs may still run" in snapshot.holds[1].reason
    assert "run nightly@1 cannot be read" in caplog.text
    assert (snapshot.last_run_id, snapshot.last_attempt_id) == (2, 2)


def test_a_finished_run_that_makes_no_sense_is_left_out_and_nothing_held(path: Path) -> None:
    execute(path, NONSENSE["an unknown state"], "UPDATE run SET finished_at = 9.0")
    with contextlib.closing(Store(path, "boot")) as store:
        snapshot = store.load()
        assert store.load_run("nightly@1").runs == []
        assert store.has_run("nightly@1")
    assert [run.name for run in snapshot.runs] == ["hourly@1"]
    assert [hold.name for hold in snapshot.holds] == ["someone's"]


@pytest.mark.parametrize(
    "nonsense", ["UPDATE hold SET at = 'soon'", "UPDATE run SET dag = x'00', definition = '' WHERE id = 2"]
)
def test_what_could_start_too_much_is_refused_by_its_row(path: Path, nonsense: str) -> None:
    execute(path, nonsense)
    with (
        contextlib.closing(Store(path, "boot")) as store,
        pytest.raises(StoreError, match=r"jobd\.db.*(hold|table run)"),
    ):
        store.load()


def test_rows_of_the_history_and_the_journal_that_make_no_sense_do_not_hide_the_others(path: Path) -> None:
    execute(path, "UPDATE attempt SET state = '?' WHERE id = 1", "UPDATE event SET at = 'noon' WHERE id = 7")
    with contextlib.closing(Store(path, "boot")) as store:
        assert [attempt.id for attempt, _, _ in store.history((), 9)] == [2]
        assert store.attempt("hourly-first", None, None) is None
        assert [entry.id for entry in store.events(5, 3)] == [6, 8]
