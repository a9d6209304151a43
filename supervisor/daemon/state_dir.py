"""The state directory is one daemon's: its lock, and the pid file."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from supervisor.trust import weakness

log = logging.getLogger("jobd")

#: What we write there, besides the database and its files.
_NAMES = ("attempts", "fifos", "logs", "lock", "shims.log")


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
    if problem := weakness(str(state_dir)):
        raise UnsafeError(f"not a safe state directory: {problem}")
    names = (*_NAMES, *(path.name for path in state_dir.glob("jobd.db*")))
    for path in map(state_dir.joinpath, names):
        if path.is_symlink():
            raise UnsafeError(f"{path} is a link; jobd's state must be in its own folder: remove it")


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
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        log.warning("%s: cannot be written as the pid file: %s", path, error.strerror)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
