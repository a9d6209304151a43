"""From a path to an open database of today's version: made, checked, or migrated after a backup.

Must be called by one process at a time; the lock on the state directory sees to that. Whatever it
refuses stays as it is to the byte, its -wal too. Must not know what the tables mean. Called by `Store`.

A kill at any instant leaves a database that the next start opens: a new one appears by rename, a
migration is one transaction, a backup has its name only once it is whole and on disk.
"""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import logging
import os
import sqlite3
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from supervisor.store.schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION

log = logging.getLogger("jobd")

#: A larger database is not read whole at the start (100 MB take a third of a second when the disk's cache is warm),
#: but only the tables that say what goes on.
MAX_CHECKED_BYTES = 100_000_000
_VITAL_TABLES = ("run", "definition", "node", "hold")
#: The head of a write-ahead log: magic number, format, page size, and five more words; the last two are a checksum.
_LOG_HEAD = struct.Struct(">8I")
_LOG_MAGIC, _LOG_FORMAT = 0x377F0682, 3_007_000
_PAGE_SIZE_AT = 16
#: What to do about trouble that is not the database's own.
_REMEDIES = {
    sqlite3.SQLITE_FULL: "make room there",
    sqlite3.SQLITE_BUSY: "end the program that has it open",
    sqlite3.SQLITE_IOERR: "see that its disk works and has room",
    sqlite3.SQLITE_CANTOPEN: "let jobd read and write it and its folder",
    sqlite3.SQLITE_READONLY: "let jobd write it and its folder",
}


class StoreError(Exception):
    """The database cannot be used; the message names the file and what to do."""


def open_database(path: Path) -> sqlite3.Connection:
    """Raises StoreError."""
    with explained(path):
        if not path.exists():
            _create(path)
        version = _check(path)
        if version < SCHEMA_VERSION:
            _migrate(path, version)
        return _connect(path)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """What the system and SQLite say, as something that an operator can act on."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be opened: {error.strerror}; jobd must be able to read and write it"
        ) from error
    except sqlite3.DatabaseError as error:
        remedy = _REMEDIES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        if remedy is None:
            raise _damaged(path, str(error)) from error
        raise StoreError(f"{path}: cannot be opened: {error}; {remedy}, then start again") from error


def _damaged(path: Path, what: str) -> StoreError:
    advice = "put a backup in its place, without a -wal, or move both away to begin with nothing"
    return StoreError(f"{path}: cannot be read as jobd's database: {what}; it was left as it is: {advice}")


# ---- making ----------------------------------------------------------------------------------------


def _create(path: Path) -> None:
    """Under another name first: a file that has the database's name has been one."""
    log_file = _log_of(path)
    if log_file.exists():
        raise StoreError(f"{path}: is missing, but {log_file} is there: put back what belongs together, or remove it")
    new = path.with_name(f"{path.name}.new")
    for left_over in (new, Path(f"{new}-journal")):
        left_over.unlink(missing_ok=True)
    with contextlib.closing(_connect_plainly(new, "mode=rwc")) as db:
        db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    _put_in_place(new, path)


def _put_in_place(new: Path, path: Path) -> None:
    """Durable under its name when this returns."""
    _sync(new)
    new.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        return _connect_to_write(path, "NORMAL")
    except sqlite3.OperationalError:
        # Perhaps the disk is too full for the index that processes share. It is ours alone, and needs none.
        return _connect_to_write(path, "EXCLUSIVE")


def _connect_to_write(path: Path, locking: str) -> sqlite3.Connection:
    db = _connect_plainly(path, "mode=rw")
    try:
        db.execute(f"PRAGMA locking_mode = {locking}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _connect_plainly(path: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None)


# ---- checking --------------------------------------------------------------------------------------


def _check(path: Path) -> int:
    """The version of the schema. Raises StoreError if it is damaged, newer, or another program's. Changes nothing."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise _damaged(path, "it is not a regular file")
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)  # also says why it cannot be opened, if so
    try:
        size_bytes, head = os.fstat(fd).st_size, os.pread(fd, 100, 0)
    finally:
        os.close(fd)
    if not head:
        raise _damaged(path, "it is empty")
    _check_log(path, head)
    with contextlib.closing(_connect_to_read(path)) as db:
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            newer = f"is of schema version {version}, this jobd knows {SCHEMA_VERSION}"
            raise StoreError(f"{path}: {newer}; run the newer jobd, or put back the backup of the time before it")
        if version == 0:
            raise _damaged(path, "it is a database of another program")
        in_part = size_bytes > MAX_CHECKED_BYTES
        for check in [f"quick_check({table})" for table in _VITAL_TABLES] if in_part else ["quick_check"]:
            [verdict] = db.execute(f"PRAGMA {check}").fetchone()
            if verdict != "ok":
                raise _damaged(path, verdict)
    return version


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Neither the database nor its log is written, not even when this is closed."""
    return _connect_plainly(path, "mode=ro" if _has_log(path) else "immutable=1")


def _log_of(path: Path) -> Path:
    return Path(f"{path}-wal")


def _has_log(path: Path) -> bool:
    log_file = _log_of(path)
    return log_file.exists() and log_file.stat().st_size > 0


def _check_log(path: Path, database_head: bytes) -> None:
    """SQLite takes a log with a damaged head for an empty one, and the commits in it would be gone without a word."""
    if not _has_log(path):
        return
    with _log_of(path).open("rb") as file:
        head = file.read(_LOG_HEAD.size)
    if not any(head) or len(head) < _LOG_HEAD.size:
        return  # the power went before anything could be committed to it
    magic, log_format, page_size, *_, first, second = _LOG_HEAD.unpack(head)
    [expected_page_size] = struct.unpack_from(">H", database_head, _PAGE_SIZE_AT)
    order = ">" if magic & 1 else "<"
    if (
        magic & ~1 != _LOG_MAGIC
        or log_format != _LOG_FORMAT
        or page_size != (65_536 if expected_page_size == 1 else expected_page_size)
        or (first, second) != _log_checksum(struct.unpack(f"{order}6I", head[:24]))
    ):
        raise _damaged(path, f"{_log_of(path).name}, which holds its latest commits, is damaged or another database's")


def _log_checksum(words: tuple[int, ...]) -> tuple[int, int]:
    """SQLite's file format, 4.2."""
    first = second = 0
    for left, right in zip(words[::2], words[1::2], strict=True):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return first, second


# ---- migrating -------------------------------------------------------------------------------------


def _migrate(path: Path, version: int) -> None:
    """To today's version, after a backup, in one transaction."""
    kept = _back_up(path, version)
    steps = "".join(MIGRATIONS[each] for each in range(version, SCHEMA_VERSION))
    with contextlib.closing(_connect(path)) as db:
        db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    log.info(
        "%s: migrated from schema version %d to %d; it is kept as it was in %s", path, version, SCHEMA_VERSION, kept
    )


def _back_up(path: Path, version: int) -> Path:
    """A copy beside it, durable when this returns: jobd.db.v1.bak. No earlier one is overwritten.

    If a migration was killed, its backup is there already: an equal one is not kept twice, a different one is numbered.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        _copy(path, new)
    except (OSError, sqlite3.OperationalError) as error:
        new.unlink(missing_ok=True)
        size = f"about {path.stat().st_size // 1_000_000 + 1} MB"
        problem = f"cannot be migrated from schema version {version}, as no backup can be made beside it: {error}"
        raise StoreError(f"{path}: {problem}; nothing was changed: make room ({size}), then start again") from error
    names = (f"{path.name}.v{version}.bak{f'.{number}' if number else ''}" for number in itertools.count())
    kept = next(
        each for each in map(path.with_name, names) if not each.exists() or filecmp.cmp(each, new, shallow=False)
    )
    _put_in_place(new, kept)
    return kept


def _copy(path: Path, new: Path) -> None:
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, stat.S_IMODE(path.stat().st_mode)))
    with contextlib.closing(_connect_to_read(path)) as db, contextlib.closing(_connect_plainly(new, "mode=rw")) as copy:
        copy.execute("PRAGMA journal_mode = OFF")  # half a copy is thrown away
        db.backup(copy)
