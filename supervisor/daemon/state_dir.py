"""The state directory is one daemon's: its lock, and the pid file."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from supervisor.trust import weakness


class UnsafeError(Exception):
    """Others could tamper with the state directory."""


class HeldError(Exception):
    """Another jobd holds the state directory; nothing was touched."""


def hold(state_dir: Path) -> int:
    """Lock the state directory, made if missing. The lock lasts as long as the process.

    Raises HeldError, UnsafeError, OSError.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    _check(state_dir)
    lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise HeldError(f"{state_dir}: another jobd holds this state directory; stop it first") from None
    return lock


def _check(state_dir: Path) -> None:
    """Others must not be able to put links or files of theirs where we write."""
    if problem := weakness(str(state_dir)):
        raise UnsafeError(f"not a safe state directory: {problem}")
    for name in ("attempts", "fifos", "logs", "lock", "jobd.db", "jobd.db-wal", "shims.log"):
        path = state_dir / name
        if path.is_symlink():
            raise UnsafeError(f"{path} is a link; jobd's state must be in its own folder: remove it")


@contextlib.contextmanager
def pid_file(path: Path | None) -> Iterator[None]:
    """Our process id in that file, as long as we run."""
    if path is None:
        yield
        return
    path.write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
