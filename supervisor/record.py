"""The record of one attempt, STATE/attempts/ID.json: what outlives both the shim and jobd.

A record is made whole, under its name, before anything of the attempt is started, and its name can
be taken only once. So an attempt id is executed at most once, whoever dies at whatever instant: the
shim that takes the name may start it; a daemon that takes it has given the attempt up.
Written by the shim and read by the executor. It need not survive power loss, so nothing is synced.

Keys: attempt, shim and shim_start (identity of the shim), forkserver (its identity), boot, fifo, log,
started_at, began_at (monotonic),
and what another shim needs to take the attempt over: terms (an order.Terms) and env (what the job's
processes can be known by). Then pid and pid_start (identity of the main process), and at last ending (an
Ending). `given_up` (why) says instead that nothing ran and nothing ever will.

The last bytes of the file tell how far the main process got: blank, nothing was begun (key `begun`);
then its status, as key `main_exit`, from before it is reaped: by the shim, or by whoever has become the
parent of that process when the shim was killed.
"""

# pathlib is too large for the small processes
# ruff: noqa: PTH108, PTH208

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Record = dict[str, Any]

#: The size of the file from the beginning, so that it can be rewritten when the disk is full.
FILE_BYTES = 4096
#: The last of them are for the status of the main process.
EXIT_BYTES = 128
RECORD_BYTES = FILE_BYTES - EXIT_BYTES
_BEGUN = b"{}".ljust(EXIT_BYTES)
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
        os.pwrite(self._fd, _encode(record) + b" " * EXIT_BYTES, 0)
        try:
            os.link(self._path, path)
        except FileExistsError:
            return False
        return True

    def rewrite(self, record: Record) -> None:
        """Replace the content in one write. OSError."""
        os.pwrite(self._fd, _encode(record), 0)

    def begin(self) -> None:
        """The last thing before the process is made: from here on nobody can know that nothing ran. OSError."""
        os.pwrite(self._fd, _BEGUN, RECORD_BYTES)

    def note_main_exit(self, status: dict[str, int]) -> None:
        """Keep the status of the main process, should this process be killed before the attempt has ended. OSError."""
        _note(self._fd, status)

    def take_over(self, path: str) -> Record | None:
        """Make the record at `path`, of a shim that was killed, this one's; it is left as it is.

        None: another shim was quicker, nothing is to be taken over, or it cannot be done for now.
        """
        self.close()
        try:
            fd, record = lock(path)
        except (OSError, ValueError):
            return None
        try:
            remove(self._path)
            os.link(path, self._path)
        except OSError:
            os.close(fd)
            return None
        self._fd = fd
        return record

    def main_exit(self) -> dict[str, Any] | None:
        """What `note_main_exit` has noted meanwhile."""
        return _decode(os.pread(self._fd, FILE_BYTES, 0)).get("main_exit")

    def close(self) -> None:
        """Records stay."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            try:
                remove(self._path)
            except OSError:
                pass  # swept up later


def read(path: str) -> Record | None:
    """The record, or None if the name is free. ValueError: it is not a record. OSError."""
    problem = ValueError("never read")
    for _ in range(READ_TRIES):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise ValueError("not a file")
                return _decode(os.pread(fd, FILE_BYTES, 0))
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            problem = ValueError("a link")
        except ValueError as error:
            problem = error
    raise problem


def lock(path: str) -> tuple[int, Record]:
    """Have the record of a killed shim to oneself, as long as the descriptor is open.

    OSError, ValueError: another has it, or there is nothing to do.
    """
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        record = _decode(os.pread(fd, FILE_BYTES, 0))
        if is_over(record):
            raise ValueError("it is over")
    except (OSError, ValueError):
        os.close(fd)
        raise
    return fd, record


def is_over(record: Record) -> bool:
    """It has ended, or never began and never will."""
    return "given_up" in record or bool(record.get("ending"))


def under_way(folder: str) -> Iterator[tuple[int, Record]]:
    """Every record that is not over, with a descriptor to write to it, which is closed afterwards."""
    for name in os.listdir(folder):
        if not name.endswith(".json"):
            continue
        try:
            fd = os.open(f"{folder}/{name}", os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            record = _decode(os.pread(fd, FILE_BYTES, 0))
            if not is_over(record):
                yield fd, record
        except (OSError, ValueError):
            pass
        finally:
            os.close(fd)


def note_main_exit(folder: str, main: tuple[int, int], status: dict[str, int]) -> None:
    """Keep the status of this process (pid, start time), if it was the main one of an attempt whose shim was killed.

    Called before it is reaped, so once it has gone its status is here or nowhere. `status`: exit_code or signal.
    """
    for fd, record in under_way(folder):
        if (record.get("pid"), record.get("pid_start")) == main:
            _note(fd, status)


def claim(path: str, reason: str) -> bool:
    """Give the attempt up, so that no shim can start it any more. False: a shim was first. OSError."""
    slot = Slot(f"{path}.claim")
    try:
        return slot.take(path, {"given_up": reason})
    finally:
        slot.close()


def _note(fd: int, status: dict[str, int]) -> None:
    os.pwrite(fd, _to_json({**status, "at": time.time()}).encode().ljust(EXIT_BYTES), RECORD_BYTES)


def _encode(record: Record) -> bytes:
    return _to_json(record).encode(errors="replace").ljust(RECORD_BYTES)


def _decode(text: bytes) -> Record:
    """ValueError: it is not a record."""
    try:
        record = json.loads(text[:RECORD_BYTES])
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    noted = text[RECORD_BYTES:].strip()
    record["begun"] = bool(noted)
    if noted and (status := json.loads(noted)):
        record["main_exit"] = status
    return record


def remove(path: str) -> None:
    """Free the name. Only once the outcome is safe elsewhere. OSError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
