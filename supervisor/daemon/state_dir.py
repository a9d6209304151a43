"""The state directory is one daemon's: its lock, and the pid file."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class HeldError(Exception):
    """Another jobd holds the state directory; nothing was touched."""


def hold(state_dir: Path) -> int:
    """Lock the state directory, made if missing. The lock lasts as long as the process. Raises HeldError, OSError."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise HeldError(f"{state_dir}: another jobd holds this state directory; stop it first") from None
    return lock


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
