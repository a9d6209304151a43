"""A job's output on its way into the log: a FIFO that the job writes and its shim reads.

The job holds the FIFO open for reading *and* writing. So it gets no SIGPIPE when the shim dies,
another reader can take over, and `echo x > /dev/stderr` cannot truncate what was written before.
Whatever happens to the log, the job neither blocks nor fails for it: bytes are dropped and counted.
Owned by one attempt of the shim. Knows nothing of processes. Stdlib only.
"""

# pathlib is too large for the small processes
# ruff: noqa: PTH103, PTH108, PTH120

from __future__ import annotations

import os

#: One read; also what the FIFO holds.
CHUNK_BYTES = 64 * 1024
#: What may still be in the FIFO when nobody writes to it any more (a job may have enlarged it).
MAX_DRAIN_BYTES = 1024 * 1024

LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Capture:
    """`fifo` is made here and removed by `close`; `log` is appended to, and made with its folders if missing."""

    def __init__(self, fifo: str, log: str, max_bytes: int) -> None:
        """OSError: there is no FIFO."""
        os.mkfifo(fifo, 0o600)
        try:
            self.read_fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self.job_fd = os.open(fifo, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                os.close(self.read_fd)
                raise
        except OSError:
            os.unlink(fifo)
            raise
        self._fifo = fifo
        self._log_fd = _open_log(log)
        self._max_bytes = max_bytes
        self._written_bytes = 0
        self._at_line_start = True
        self.dropped_bytes = 0

    def transfer(self) -> int:
        """Move what is there, one chunk at most; 0 = nothing was there."""
        try:
            chunk = os.read(self.read_fd, CHUNK_BYTES)
        except BlockingIOError:
            return 0
        kept = chunk[: self._max_bytes - self._written_bytes] if self._log_fd is not None else b""
        written = self._append(kept) if kept else 0
        self._written_bytes += written
        self.dropped_bytes += len(chunk) - written
        if written:
            self._at_line_start = kept[written - 1 : written] == b"\n"
        return len(chunk)

    def close(self) -> None:
        """Take what is left, say in the log what was dropped, and remove the FIFO."""
        left = MAX_DRAIN_BYTES
        while left > 0 and (moved := self.transfer()):
            left -= moved
        os.close(self.read_fd)
        os.close(self.job_fd)
        try:
            os.unlink(self._fifo)
        except OSError:
            pass  # a FIFO that stays does no harm
        if self._log_fd is None:
            return
        if self.dropped_bytes:
            start = "" if self._at_line_start else "\n"
            self._append(f"{start}[jobd: {self.dropped_bytes} bytes dropped; log_max is {self._max_bytes}]\n".encode())
        os.close(self._log_fd)

    def _append(self, text: bytes) -> int:
        """How much of it was written: less on a full disk."""
        assert self._log_fd is not None
        try:
            return os.write(self._log_fd, text)
        except OSError:
            return 0


def _open_log(path: str) -> int | None:
    """None if there can be no log; the job goes on without it."""
    try:
        return os.open(path, LOG_FLAGS, 0o640)
    except FileNotFoundError:
        pass
    except OSError:
        return None
    try:
        os.makedirs(os.path.dirname(path), 0o750, exist_ok=True)
        return os.open(path, LOG_FLAGS, 0o640)
    except OSError:
        return None
