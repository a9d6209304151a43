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
_SLOT_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: A reader may meet a writer half way.
READ_TRIES = 5


class Slot:
    """A file of one process that becomes the record of one attempt after another, by a second name.

    So an attempt makes no new file and deletes none, which is what is slow on some file systems.
    """

    def __init__(self, path: str) -> None:
        """`path` must be this process's alone."""
        self._path = path
        self._fd = -1

    def take(self, path: str, record: Record) -> bool:
        """Make this the record at `path`; False if that name was taken already. OSError."""
        if self._fd >= 0 and os.fstat(self._fd).st_nlink != 1:
            self.close()  # the last record is still needed (2 links), or our file is gone (0)
        if self._fd < 0:
            remove(self._path)
            self._fd = os.open(self._path, _SLOT_FLAGS, 0o600)
        self.rewrite(record)
        try:
            os.link(self._path, path)
        except FileExistsError:
            return False
        return True

    def rewrite(self, record: Record) -> None:
        """Replace the content in one write. OSError."""
        os.pwrite(self._fd, _to_json(record).encode(errors="backslashreplace").ljust(RECORD_BYTES), 0)

    def close(self) -> None:
        """Records stay."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            remove(self._path)


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
    """Give the attempt up, so that no shim can start it any more. False: a shim was first. OSError."""
    slot = Slot(f"{path}.claim")
    try:
        return slot.take(path, {"given_up": reason})
    finally:
        slot.close()


def remove(path: str) -> None:
    """Free the name. Only once the outcome is safe elsewhere."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
