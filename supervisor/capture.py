"""A job's output on its way into the log: a FIFO that the job writes and its shim reads.

The job holds the FIFO open for reading *and* writing. So it gets no SIGPIPE when the shim dies,
another reader can take over, and `echo x > /dev/stderr` cannot truncate what was written before.
Whatever happens to the log, the job neither blocks nor fails for it: bytes are dropped and counted.
Used by the shim. Knows nothing of processes. Stdlib only.
"""

# pathlib is too large for the small processes
# ruff: noqa: PTH101, PTH108

from __future__ import annotations

import errno
import os

#: One read; also what the FIFO holds.
CHUNK_BYTES = 64 * 1024
#: What may still be in the FIFO when nobody writes to it any more (a job may have enlarged it).
MAX_DRAIN_BYTES = 1024 * 1024

#: Not O_APPEND, which splice does not take.
LOG_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
FOLDER_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Fifo:
    """A shim's FIFO, for one attempt after another, as long as nobody keeps it from the last one.

    `read_fd` does not block; `job_fd` is for the job's stdout and stderr. Both are open between `open` and `close`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.job_fd = -1
        self.read_fd = -1

    def open(self) -> None:
        """OSError: there is none."""
        if self.read_fd < 0:
            os.mkfifo(self.path, 0o600)
            try:
                self.read_fd = self._open_to_read()
            except OSError:
                os.unlink(self.path)
                raise
        try:
            self.job_fd = self._open_for_job()
        except (FileNotFoundError, PermissionError):  # someone has removed it, or our rights to it: make another one
            self.remove()
            os.mkfifo(self.path, 0o600)
            self.read_fd = self._open_to_read()
            self.job_fd = self._open_for_job()

    def _open_to_read(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _open_for_job(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def reopen(self) -> None:
        """Take over the FIFO of a shim that was killed, which is here unless someone removed it. OSError."""
        try:
            self.read_fd = self._open_to_read()
            self.job_fd = self._open_for_job()
        except FileNotFoundError:
            self.open()
        except PermissionError:
            os.chmod(self.path, 0o600)  # the job has taken our rights to it
            self.let_go()
            raise

    def let_go(self) -> None:
        """It stays as it is, for another one to reopen."""
        for fd in (self.read_fd, self.job_fd):
            if fd >= 0:
                os.close(fd)
        self.read_fd = self.job_fd = -1

    def close(self, reuse: bool) -> None:
        """Not used again if not wanted so, or if someone outside of the job can still write to it."""
        os.close(self.job_fd)
        if not reuse or not self._is_closed_by_all():
            self.remove()

    def remove(self) -> None:
        """The next `open` makes another one."""
        if self.read_fd >= 0:
            os.close(self.read_fd)
            self.read_fd = -1
            try:
                os.unlink(self.path)
            except OSError:
                pass  # swept up later

    def _is_closed_by_all(self) -> bool:
        try:
            return not os.read(self.read_fd, 1)  # the end: nobody is left who could write
        except BlockingIOError:
            return False


class Capture:
    """One attempt's output, from the FIFO (which is open) to the log (made with its folders if missing)."""

    def __init__(self, fifo: Fifo, log: str, max_bytes: int) -> None:
        self.fifo = fifo
        self._log_fd = _open_log(log)
        self._max_bytes = max_bytes
        self._written_bytes = os.fstat(self._log_fd).st_size if self._log_fd is not None else 0
        self._can_splice = True
        self.dropped_bytes = 0

    def transfer(self) -> int:
        """Move what is there, one chunk at most; 0 = nothing was there."""
        room = min(self._max_bytes - self._written_bytes, CHUNK_BYTES)
        try:
            if self._log_fd is None or room <= 0:
                return self._drop()
            os.lseek(self._log_fd, 0, os.SEEK_END)
            moved = self._splice(self._log_fd, room) if self._can_splice else self._copy(self._log_fd, room)
            self._written_bytes += moved
            return moved or self._drop()
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Take what is left, and say in the log what was dropped."""
        left = MAX_DRAIN_BYTES
        while left > 0 and (moved := self.transfer()):
            left -= moved
        if self._log_fd is None:
            return
        if self.dropped_bytes:
            is_full = self._written_bytes >= self._max_bytes
            why = f"log_max is {self._max_bytes}" if is_full else "the disk was full, or the log could not be written"
            self._say(self._log_fd, f"[jobd: {self.dropped_bytes} bytes dropped; {why}]\n")
        os.close(self._log_fd)

    def _splice(self, log_fd: int, count: int) -> int:
        """In one system call, so that nothing is lost if this process is killed meanwhile. 0: the log takes nothing."""
        try:
            return os.splice(self.fifo.read_fd, log_fd, count, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno != errno.EINVAL:
                return 0
        self._can_splice = False  # this file system does not know it
        return self._copy(log_fd, count)

    def _copy(self, log_fd: int, count: int) -> int:
        chunk = os.read(self.fifo.read_fd, count)
        try:
            written = os.write(log_fd, chunk)
        except OSError:
            written = 0
        self.dropped_bytes += len(chunk) - written
        return written

    def _drop(self) -> int:
        """The job must not wait for us, whatever becomes of its output."""
        dropped = len(os.read(self.fifo.read_fd, CHUNK_BYTES))
        self.dropped_bytes += dropped
        return dropped

    def _say(self, log_fd: int, text: str) -> None:
        """On a line of its own."""
        try:
            end = os.lseek(log_fd, 0, os.SEEK_END)
            at_line_start = end == 0 or os.pread(log_fd, 1, end - 1) == b"\n"
            os.write(log_fd, f"{'' if at_line_start else chr(10)}{text}".encode())
        except OSError:
            pass


def _open_log(path: str) -> int | None:
    """None if there can be no log; the job goes on without it.

    The path is LOGS/DAG/RUN/NAME. Step by step, so that neither a link nor `..` leads out of the log folder.
    """
    logs, *folders, name = path.rsplit("/", 3)
    if ".." in folders:
        return None
    fds: list[int] = []
    try:
        fds.append(_open_folder(logs, None))
        for folder in folders:
            fds.append(_open_folder(folder, fds[-1]))
        return os.open(name, LOG_FLAGS, 0o640, dir_fd=fds[-1])
    except OSError:
        return None
    finally:
        for fd in fds:
            os.close(fd)


def _open_folder(name: str, parent_fd: int | None) -> int:
    """Made if missing."""
    try:
        return os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
    except FileNotFoundError:
        pass
    try:
        os.mkdir(name, 0o750, dir_fd=parent_fd)
    except FileExistsError:
        pass  # another shim was quicker
    return os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
