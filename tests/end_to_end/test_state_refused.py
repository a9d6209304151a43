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


def test_commits_that_are_lost_while_their_jobs_run_are_noticed(jobd: Jobd) -> None:
    """With its -wal gone, the database knows nothing of them: they would be forgotten, and run twice."""
    jobd.start("[jobs.long]\ncommand = 'echo began >> ledger; read x < gate'\n")
    os.mkfifo(jobd.folder / "gate")
    jobd.ctl("start", "long")
    jobd.await_event(lambda event: event["kind"] == "running")
    jobd.stop(signal.SIGKILL)
    log = jobd.state / "jobd.db-wal"
    whole = log.read_bytes()
    record = jobd.state / "attempts" / "1.json"
    for damaged in (None, whole[:40], whole[:50] + bytes(8) + whole[58:]):
        log.unlink() if damaged is None else log.write_bytes(damaged)
        message = refused_after_opening(jobd).strip().splitlines()[-1]
        assert message.startswith(f"jobd: {record} tells of an attempt that {jobd.state}/jobd.db does not know")
        assert record.exists()
        assert damaged is None or log.read_bytes() == damaged
    log.write_bytes(whole)
    (jobd.state / "jobd.db-shm").unlink()
    jobd.start()
    (jobd.folder / "gate").write_text("go\n")  # which waits until the job is there
    jobd.ctl("wait", "long")
    assert (jobd.folder / "ledger").read_text().split() == ["began"]


@pytest.mark.parametrize("name", ["jobd.db", "jobd.db-wal", "jobd.db.new", "jobd.db.v1.bak"])
def test_a_link_in_place_of_a_file_of_the_database_is_refused(jobd: Jobd, database: Path, name: str) -> None:
    (jobd.state / name).unlink(missing_ok=True)
    (jobd.folder / "target").write_text("someone's")
    (jobd.state / name).symlink_to(jobd.folder / "target")
    assert f"{jobd.state / name} is a link" in refused(jobd)
    assert (jobd.folder / "target").read_text() == "someone's"


@pytest.mark.parametrize("place", ["logs/main", "logs/main/RUN"])
def test_no_log_is_written_through_a_link(jobd: Jobd, place: str) -> None:
    """The job runs all the same."""
    jobd.start("[jobs.first]\ncommand = 'echo said'\n[jobs.second]\nneeds = ['first']\ncommand = 'echo said'\n")
    jobd.ctl("hold", "second")
    jobd.ctl("start", "main")
    jobd.await_event(lambda event: event["kind"] == "success" and event["job"] == "first")
    [run] = {job["run"] for job in jobd.jobs("main").values()}
    target = jobd.folder / "target"
    folder = jobd.state / place.replace("RUN", run)
    folder.rename(target)
    folder.symlink_to(target)
    before = sorted(target.rglob("*"))
    assert before
    jobd.ctl("release", "second")
    jobd.ctl("wait", "main")
    assert jobd.states() == {"first": "success", "second": "success"}
    assert sorted(target.rglob("*")) == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
def test_roots_job_is_not_started_in_a_folder_that_others_can_change(jobd: Jobd) -> None:
    theirs = jobd.folder / "theirs"
    theirs.mkdir()
    os.chown(theirs, 5, 5)
    for folder in (jobd.folder, *jobd.folder.parents[:2]):  # so that user 5 may enter
        folder.chmod(folder.stat().st_mode | 0o011)
    jobd.start(f"""
[jobs.plain]
command = "true"
dir = "{theirs}"
[jobs.limited]
command = "true"
dir = "{theirs}"
limits = {{nice = 5}}
[jobs.own]
command = "true"
dir = "{theirs}"
user = "games"
""")
    jobd.ctl("start", "main", "--wait", code=None)
    jobs = jobd.jobs("main")
    for name in ("plain", "limited"):
        assert "not safe as the folder of root's job" in jobs[name]["reason"]
        assert f"{theirs} belongs to user 5" in jobs[name]["reason"]
    assert jobs["own"]["state"] == "success"


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
    (jobd.state / "jobd.db").chmod(0o640)  # whatever the checkout made of it
    jobd.start(CONFIG)
    assert "migrated from schema version 1 to" in jobd.log
    jobd.await_event(lambda event: event["kind"] == "lost" and event["job"] == "long")
    history = jobd.ctl("history", "long", "--json").json["attempts"]
    assert [(attempt["state"], attempt["attempt"]) for attempt in history] == [("lost", 1)]
    assert jobd.states("main")["held"] == "queued"
    assert (jobd.state / "jobd.db.v1.bak").exists()
