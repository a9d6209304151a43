"""The record of one attempt, STATE/attempts/ID.json: what outlives both the shim and jobd.

A record is made whole, under its name, before anything of the attempt is started, and its name can
be taken only once. So an attempt id is executed at most once, whoever dies at whatever instant: the
shim that takes the name may start it; a daemon that takes it has given the attempt up.
Written by the shim and read by the executor. It need not survive power loss, so nothing is synced.

Keys: attempt, shim and shim_start (identity of the shim), boot, fifo, log, started_at; then pid (main
process) and ending (an Ending). `given_up` (why) says instead that nothing ran and nothing ever will.
"""

# pathlib is too large for the small processes
# ruff: noqa: PTH108

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Record = dict[str, Any]

#: The size of a record from the beginning, so that it can be rewritten when the disk is full.
RECORD_BYTES = 4096
#: Longest text in an ending, in characters. JSON in UTF-8 makes at most 6 bytes of one.
MAX_TEXT_CHARS = 500
_to_json = json.JSONEncoder(ensure_ascii=False).encode
#: A reader may meet a writer half way.
READ_TRIES = 5


def create(path: str, record: Record) -> int | None:
    """Take the name and return a descriptor to rewrite the record by; None if it was taken already."""
    draft = f"{path}.{os.getpid()}"
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        rewrite(fd, record)
        os.link(draft, path)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, FileExistsError):
            return None
        raise
    finally:
        os.unlink(draft)
    return fd


def rewrite(fd: int, record: Record) -> None:
    """Replace the content in one write."""
    os.pwrite(fd, _to_json(record).encode(errors="backslashreplace").ljust(RECORD_BYTES), 0)


def read(path: str) -> Record | None:
    """The record, or None if the name is free. ValueError: it is not a record."""
    problem = ValueError("never read")
    for _ in range(READ_TRIES):
        try:
            with open(path, "rb") as file:
                record = json.loads(file.read(RECORD_BYTES))
            if isinstance(record, dict):
                return record
            problem = ValueError("not a JSON object")
        except FileNotFoundError:
            return None
        except ValueError as error:
            problem = error
    raise problem


def claim(path: str, reason: str) -> bool:
    """Give the attempt up, so that no shim can start it any more. False: a shim was first."""
    fd = create(path, {"given_up": reason})
    if fd is None:
        return False
    os.close(fd)
    return True


def remove(path: str) -> None:
    """Free the name. Only once the outcome is safe elsewhere."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
