"""The state directory is one daemon's: its lock, and the pid file."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from supervisor.trust import weakness

log = logging.getLogger("jobd")

#: What we write there, besides the database and its files.
_FOLDERS, _FILES = ("attempts", "fifos", "logs"), ("lock", "shims.log")


class UnsafeError(Exception):
    """Others could tamper with the state directory, or a part of it is missing."""


class HeldError(Exception):
    """Another jobd holds the state directory; nothing was touched."""


def hold(state_dir: Path) -> int:
    """Lock the state directory, made if missing. The lock lasts as long as the process.

    Raises HeldError, UnsafeError, OSError.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    _check(state_dir)
    folder = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _lock_folder(folder)
    except BlockingIOError:
        os.close(lock)
        os.close(folder)
        raise HeldError(f"{state_dir}: another jobd holds this state directory; stop it first") from None
    _check_whole(state_dir)
    return lock


def _lock_folder(folder: int) -> None:
    """The folder too: the file may be removed by someone who cleans up, and then another one could be made."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system that cannot


def _check(state_dir: Path) -> None:
    """Others must not be able to put links or files of theirs where we write."""
    _check_safe(state_dir)
    for path in map(state_dir.joinpath, _FOLDERS):
        _check_kind(path, stat.S_ISDIR, "folder")
    for path in (*map(state_dir.joinpath, _FILES), *state_dir.glob("jobd.db*")):
        _check_kind(path, stat.S_ISREG, "regular file")


def _check_safe(path: Path) -> None:
    if problem := weakness(str(path)):
        raise UnsafeError(f"not a safe state directory: {problem}")


def _check_kind(path: Path, is_right: Callable[[int], bool], kind: str) -> None:
    """What stands there, if anything does, is of this kind, and only ours to change."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise UnsafeError(f"{path} is a link; jobd's state must be in its own folder: remove it")
    if not is_right(mode):
        raise UnsafeError(f"{path} is not a {kind}: move it away, and put back what was there")
    _check_safe(path)


def _check_whole(state_dir: Path) -> None:
    """A database that is gone must not become a new one while jobs of the old one may run: they would run twice."""
    database, attempts = state_dir / "jobd.db", state_dir / "attempts"
    if not database.exists() and any(attempts.glob("*.json")):
        problem = f"{database} is missing, but {attempts} has records of jobs that may still run"
        raise UnsafeError(f"{problem}: put the database back, or, once they have ended, remove the records")


@contextlib.contextmanager
def pid_file(path: Path | None) -> Iterator[None]:
    """Our process id in that file, as long as we run. Jobs matter more: without room for it we serve all the same."""
    if path is None:
        yield
        return
    try:
        _write_pid(path)
    except OSError as error:
        log.warning("%s: cannot be written as the pid file: %s", path, error.strerror)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            if _read_pid(path) == os.getpid():  # else it is another one's by now
                path.unlink()


def _write_pid(path: Path) -> None:
    """Whole, by rename: whatever stood there is neither waited for nor written through."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            os.write(fd, f"{os.getpid()}\n".encode())
        finally:
            os.close(fd)
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _read_pid(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 32))
    finally:
        os.close(fd)
