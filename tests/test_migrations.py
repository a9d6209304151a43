"""Databases of every released version become today's: nothing is lost, whatever kills it, and there is a backup.

JOBD_TEST_KILLS: how many migrations are killed at random instants (default 25).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from supervisor.core import queries, views
from supervisor.core.engine import Engine
from supervisor.core.events import Now
from supervisor.core.model import Definitions, State
from supervisor.store import SCHEMA_VERSION, Store, StoreError
from supervisor.store.schema import MIGRATIONS

FIXTURES = Path(__file__).parent / "fixtures"
OLDER = range(1, SCHEMA_VERSION)
KILLS = int(os.environ.get("JOBD_TEST_KILLS", "25"))
STORE = str(Path(sys.modules[Store.__module__].__file__ or "").parent)


def fixture(version: int) -> Path:
    return FIXTURES / f"jobd-v{version}.db"


def copy(database: Path, folder: Path) -> Path:
    """As that folder's jobd.db."""
    folder.mkdir(exist_ok=True)
    path = folder / "jobd.db"
    shutil.copy(database, path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of the oldest database."""
    return copy(fixture(1), tmp_path)


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Changes nothing; without a log it makes no file beside it either."""
    log = Path(f"{path}-wal")
    how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
    return sqlite3.connect(f"file:{path}?{how}", uri=True)


def dump(path: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, in order."""
    with contextlib.closing(connect_to_read(path)) as db:
        db.row_factory = sqlite3.Row
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
        return {table: [dict(row) for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2")] for table in tables}


def without_new_columns(
    rows: dict[str, list[dict[str, Any]]], old: dict[str, list[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Of today's rows what an old database has."""
    return {table: [{key: row[key] for key in old[table][0]} for row in rows[table]] for table in old}


def version_of(path: Path) -> int:
    with contextlib.closing(connect_to_read(path)) as db:
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        return version


def migrate(path: Path) -> None:
    Store(path, "boot").close()


# ---- every released version ------------------------------------------------------------------------


def test_there_is_a_database_of_every_earlier_version_and_a_script_for_it() -> None:
    """If this fails: make one with the code of the last release, by tests/fixtures/make_database.py."""
    assert sorted(FIXTURES.glob("*.db")) == [fixture(version) for version in OLDER]
    assert [version_of(fixture(version)) for version in OLDER] == [*OLDER] == sorted(MIGRATIONS)
    assert not [*FIXTURES.glob("*-wal"), *FIXTURES.glob("*-shm")], "a fixture is one file"


@pytest.mark.parametrize("version", OLDER)
def test_nothing_is_lost(tmp_path: Path, version: int) -> None:
    path = copy(fixture(version), tmp_path)
    old = dump(path)
    migrate(path)
    assert version_of(path) == SCHEMA_VERSION
    assert without_new_columns(dump(path), old) == old
    assert dump(tmp_path / f"jobd.db.v{version}.bak") == old


@pytest.mark.parametrize("version", OLDER)
def test_it_is_what_that_jobd_said_it_was(tmp_path: Path, version: int) -> None:
    """Read by today's code, an old database gives the answers that the old jobd gave, or more."""
    told = json.loads(fixture(version).with_suffix(".json").read_text())
    with contextlib.closing(Store(copy(fixture(version), tmp_path), "boot")) as store:
        engine = Engine(Definitions(), store.has_run)
        now = Now(time.time(), time.monotonic())
        engine.restore(store.load(), now)
        for run, jobs in told["status"].items():
            if engine.registry.by_name(run) is None:
                engine.restore(store.load_run(run), now)
            shown = queries.status(engine, (), run, now)
            assert isinstance(shown, dict)
            assert_same(shown["jobs"], jobs)
        history = [queries.attempt_view(*each) for each in store.history((), 1000)]
        assert_same(history, told["history"])
        assert_same([views.event_view(entry) for entry in store.events(0)][: len(told["events"])], told["events"])
        for request_id, answer in told["answers"].items():
            assert json.loads(store.answer(request_id) or b"") == {"result": answer}


def assert_same(today: list[dict[str, Any]], told: list[dict[str, Any]]) -> None:
    """Fields may have been added."""
    known = [{key: shown[key] for key in old} for shown, old in zip(today, told, strict=True)]
    assert json.loads(json.dumps(known)) == told


@pytest.mark.parametrize("version", OLDER)
def test_it_has_every_kind_of_content(version: int) -> None:
    """Or the tests above would show little."""
    rows = dump(fixture(version))
    assert all(rows.values()), "a table is empty"
    assert {row["state"] for row in rows["node"]} == {*State} - {State.STOPPING}
    assert {row["finished_at"] is None for row in rows["run"]} == {True, False}
    assert any(row["data"] for row in rows["attempt"])
    assert any(row["message"] for row in rows["attempt"])
    assert fixture(version).stat().st_size < 200_000


@pytest.mark.parametrize("version", OLDER)
def test_the_tables_are_those_of_a_new_database(tmp_path: Path, version: int) -> None:
    migrated = copy(fixture(version), tmp_path)
    migrate(migrated)
    (tmp_path / "new").mkdir()
    Store(tmp_path / "new" / "jobd.db", "boot").close()
    assert shape(migrated) == shape(tmp_path / "new" / "jobd.db")


def shape(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        objects = db.execute("SELECT type, name FROM sqlite_schema ORDER BY 1, 2").fetchall()
        pragma = {"table": "table_xinfo", "index": "index_xinfo"}
        return {name: db.execute(f"PRAGMA {pragma[kind]}({name})").fetchall() for kind, name in objects}


def test_attempts_of_version_1_have_no_known_boot_and_keep_none(path: Path) -> None:
    with contextlib.closing(Store(path, "boot")) as store:
        [long] = [attempt for attempt, _, _ in store.history(("long",), 1)]
        assert store.boots([long.id]) == {long.id: None}


# ---- the backup ------------------------------------------------------------------------------------


def backups(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir() if ".bak" in each.name)


def test_a_backup_is_as_private_as_the_database(path: Path) -> None:
    path.chmod(0o600)
    migrate(path)
    assert path.with_name("jobd.db.v1.bak").stat().st_mode & 0o777 == 0o600


def test_an_equal_backup_is_not_made_twice_and_another_one_is_not_overwritten(path: Path) -> None:
    old = path.read_bytes()
    for _ in range(2):
        path.write_bytes(old)
        migrate(path)
        assert backups(path) == ["jobd.db.v1.bak"]
    first = path.with_name("jobd.db.v1.bak").read_bytes()
    path.write_bytes(old)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM answer")
    changed = dump(path)
    migrate(path)
    assert backups(path) == ["jobd.db.v1.bak", "jobd.db.v1.bak.1"]
    assert path.with_name("jobd.db.v1.bak").read_bytes() == first
    assert dump(path.with_name("jobd.db.v1.bak.1")) == changed


def test_commits_that_are_only_in_the_log_are_in_the_backup_too(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("INSERT INTO event (at, kind, text) VALUES (1.0, 'queued', 'the last one')")
        db.commit()
        killed = {each.name: each.read_bytes() for each in path.parent.glob("jobd.db*")}
    for name, content in killed.items():
        path.with_name(name).write_bytes(content)
    migrate(path)
    assert dump(path)["event"][-1]["text"] == "the last one"
    assert dump(path.with_name("jobd.db.v1.bak"))["event"][-1]["text"] == "the last one"


def test_without_room_for_a_backup_nothing_is_changed_and_the_message_says_how_much_is_needed(path: Path) -> None:
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"no backup can be made.*nothing was changed: make room \(about 1 MB\)"):
            Store(path, "boot")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["jobd.db"]
    migrate(path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("only root may mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("free_bytes", range(0, 300_000, 20_000))
def test_on_a_small_disk_it_is_migrated_or_as_it_was(small_disk: Path, free_bytes: int) -> None:
    """With room for nothing, half of a backup, a backup, a backup and half of a migration …"""
    path = copy(fixture(1), small_disk)
    old = dump(path)
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    filler.write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - free_bytes)))
    with contextlib.suppress(StoreError):
        migrate(path)
    assert without_new_columns(dump(path), old) == old
    filler.unlink()
    migrate(path)
    assert without_new_columns(dump(path), old) == old
    assert backups(path) == ["jobd.db.v1.bak"]
    assert not path.with_name("jobd.db.new").exists()


# ---- killed ----------------------------------------------------------------------------------------


def fork(child: Callable[[], object]) -> int:
    """The pid of a process that does this and leaves."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def check_after_kill(path: Path, old: dict[str, list[dict[str, Any]]]) -> None:
    """It is the old version or the new one, the next start makes it the new one, and there is one backup."""
    assert version_of(path) in (1, SCHEMA_VERSION)
    migrate(path)
    assert version_of(path) == SCHEMA_VERSION
    assert without_new_columns(dump(path), old) == old
    assert backups(path) == ["jobd.db.v1.bak"]
    assert dump(path.with_name("jobd.db.v1.bak")) == old
    assert not path.with_name("jobd.db.new").exists()


def test_killed_before_any_line_of_it_and_started_again_nothing_is_lost(tmp_path: Path) -> None:
    old = dump(fixture(1))
    for line in range(1, 1000):
        path = copy(fixture(1), tmp_path / str(line))

        def migrate_and_die(path: Path = path, line: int = line) -> None:
            sys.settrace(die_at(line))
            migrate(path)

        _, status = os.waitpid(fork(migrate_and_die), 0)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        check_after_kill(path, old)
    assert line > 50, "the lines of the store were not counted"


def die_at(last: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function: kills this process before the `last` line of the store's modules that it comes to."""
    left = last

    def trace(frame: FrameType, what: str, _value: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(STORE):
            return None
        left -= what == "line"
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that takes a while."""
    path = copy(fixture(1), tmp_path_factory.mktemp("large"))
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        row = (1.0, "queued", "x" * 100)
        db.executemany("INSERT INTO event (at, kind, text) VALUES (?, ?, ?)", [row] * 4_000)
    return path


def test_killed_at_any_instant_and_started_again_nothing_is_lost(large: Path, tmp_path: Path) -> None:
    old = dump(large)
    began = time.monotonic()
    migrate(copy(large, tmp_path))
    takes_s = time.monotonic() - began
    killed = 0
    for seed in range(KILLS):
        path = copy(large, tmp_path / str(seed))
        child = fork(lambda path=path: migrate(path))  # type: ignore[misc]
        end = select.poll()
        pidfd = os.pidfd_open(child)
        end.register(pidfd, select.POLLIN)
        end.poll(random.Random(seed).uniform(0, takes_s) * 1000)
        os.kill(child, signal.SIGKILL)  # at worst it is a zombie, and ours
        _, status = os.waitpid(child, 0)
        os.close(pidfd)
        killed += os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        check_after_kill(path, old)
    assert killed > KILLS // 4
