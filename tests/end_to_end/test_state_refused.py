"""A state directory that is not as it should be: refused, but for a run that makes no sense, which is left out."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import PATIENCE_S, PROJECT, Jobd

CONFIG = "[jobs.one]\ncommand = 'true'\n"
FIXTURES = PROJECT / "tests" / "fixtures"


def refused(jobd: Jobd) -> str:
    """jobd exits 78 with one message, and has not changed a byte of its database."""
    jobd.configure(CONFIG)
    before = {path.name: path.read_bytes() for path in jobd.state.glob("jobd.db*")}
    command = [sys.executable, "-m", "supervisor", "-c", str(jobd.config), "--state-dir", str(jobd.state)]
    done = subprocess.run(
        [*command, "--socket", str(jobd.socket)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 78, done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in jobd.state.glob("jobd.db*")} == before
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def database(jobd: Jobd) -> Path:
    """Of a jobd that has left."""
    jobd.start(CONFIG)
    jobd.stop()
    return jobd.state / "jobd.db"


def execute(database: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        assert db.execute(statement).rowcount != 0


def test_a_damaged_database_is_refused_by_name_and_kept(jobd: Jobd, database: Path) -> None:
    database.write_bytes(database.read_bytes()[:5000])
    assert refused(jobd).startswith(f"jobd: {database}: cannot be read as jobd's database")


def test_a_newer_database_is_refused_by_name_and_kept(jobd: Jobd, database: Path) -> None:
    execute(database, "PRAGMA user_version = 99")
    assert refused(jobd).startswith(f"jobd: {database}: is of schema version 99")


def test_a_hold_that_makes_no_sense_is_refused_by_its_row(jobd: Jobd, database: Path) -> None:
    execute(database, "INSERT INTO hold VALUES ('one', 'me', 'soon', '', NULL)")
    assert "the hold (one, me, …) makes no sense" in refused_after_opening(jobd)


def refused_after_opening(jobd: Jobd) -> str:
    """As above, but it had to open the database to see it."""
    command = [sys.executable, "-m", "supervisor", "-c", str(jobd.config), "--state-dir", str(jobd.state)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=PATIENCE_S, check=False)
    assert done.returncode == 78, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_database_that_is_gone_while_its_jobs_may_run_is_not_replaced_by_an_empty_one(
    jobd: Jobd, database: Path
) -> None:
    (jobd.state / "attempts" / "1.json").write_text("{}")
    database.unlink()
    assert "has records of jobs that may still run: put the database back" in refused(jobd)
    assert not database.exists()


@pytest.mark.parametrize("name", ["jobd.db", "jobd.db-wal", "jobd.db.new", "jobd.db.v1.bak"])
def test_a_link_in_place_of_a_file_of_the_database_is_refused(jobd: Jobd, database: Path, name: str) -> None:
    (jobd.state / name).unlink(missing_ok=True)
    (jobd.folder / "target").write_text("someone's")
    (jobd.state / name).symlink_to(jobd.folder / "target")
    assert f"{jobd.state / name} is a link" in refused(jobd)
    assert (jobd.folder / "target").read_text() == "someone's"


def test_a_run_that_makes_no_sense_stops_nothing_else_and_none_of_its_jobs_starts_twice(jobd: Jobd) -> None:
    """Its dag is held until someone has looked; once the row is right again, its jobs' true ends are there."""
    os.mkfifo(jobd.folder / "gate")
    jobd.start("""
[jobs.long]
command = "echo began >> ledger; read x < gate; exit 4"
[jobs.then]
command = "echo then >> ledger"
needs = ["long:failed"]
[dags.other]
[jobs.fine]
dag = "other"
command = "echo fine >> ledger"
""")
    jobd.ctl("start", "main")
    jobd.ctl("start", "other", "--wait")
    jobd.await_event(lambda event: event["kind"] == "running" and event["job"] == "long")
    [run] = {job["run"] for job in jobd.jobs("main").values()}
    jobd.stop(signal.SIGKILL)
    execute(jobd.state / "jobd.db", "UPDATE node SET state = 'waiting' WHERE job = 'then'")
    jobd.start()
    assert f"run {run} cannot be read and is left out" in jobd.log
    assert jobd.jobs()["long"]["held"]
    jobd.ctl("status", "--run", run, code=4)
    jobd.ctl("restart", "other", "--wait")

    (jobd.folder / "gate").write_text("go\n")  # which waits until the job is there
    jobd.stop()
    execute(jobd.state / "jobd.db", "UPDATE node SET state = 'queued' WHERE job = 'then'")
    jobd.start()
    jobd.ctl("wait", "main", code=1)
    assert jobd.jobs()["long"]["exit_code"] == 4
    assert jobd.states("main") == {"long": "failed", "then": "success"}
    assert (jobd.folder / "ledger").read_text().split().count("began") == 1


def test_a_database_of_version_1_is_taken_over(jobd: Jobd) -> None:
    """What ran then is lost: it is not known to have been in this boot of the machine, and there is no record of it."""
    jobd.state.mkdir()
    shutil.copy(FIXTURES / "jobd-v1.db", jobd.state / "jobd.db")
    jobd.start(CONFIG)
    assert "migrated from schema version 1 to" in jobd.log
    jobd.await_event(lambda event: event["kind"] == "lost" and event["job"] == "long")
    history = jobd.ctl("history", "long", "--json").json["attempts"]
    assert [(attempt["state"], attempt["attempt"]) for attempt in history] == [("lost", 1)]
    assert jobd.states("main")["held"] == "queued"
    assert (jobd.state / "jobd.db.v1.bak").exists()
