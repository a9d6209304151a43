"""Reading and following the output of attempts, for clients of the socket.

Owns the watches on log files (inotify, so nothing is polled). Shims write these files; this only
reads. Knows no jobs and no sockets: what it reads goes to callbacks. Called by the daemon.
"""

from __future__ import annotations

import codecs
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import inotify_simple

from supervisor.loop import Loop

#: Bytes of a log's end that one answer holds at most.
MAX_TAIL_BYTES = 1 << 20
#: Bytes sent to a follower in one step.
CHUNK_BYTES = 64 * 1024


def tail(path: Path, lines: int) -> tuple[str, int]:
    """The last lines of a log as text, and the offset in bytes behind them. A log that is not there is empty."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return "", 0
    with open(descriptor, "rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - MAX_TAIL_BYTES))
        body = log.read(MAX_TAIL_BYTES)
    kept = body.splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(kept).decode("utf-8", "replace"), max(0, size - MAX_TAIL_BYTES) + len(body)


@dataclass(slots=True)
class _Follower:
    fd: int  # of the log, which may be removed or replaced meanwhile
    watch: int
    offset: int
    send: Callable[[str], None]
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))


class LogFollowers:
    """Sends what is appended to logs, by token of whoever follows."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._inotify: inotify_simple.INotify | None = None  # made when someone follows
        self._followers: dict[int, _Follower] = {}
        self._watches: dict[int, set[int]] = {}  # watch descriptor -> tokens

    def follow(self, token: int, path: Path, offset: int, send: Callable[[str], None]) -> None:
        """Call `send` with all that stands behind `offset`, now and as it comes, until `stop`. OSError."""
        if self._inotify is None:
            self._inotify = inotify_simple.INotify(nonblocking=True)
            self._loop.watch(self._inotify.fileno(), read=self._on_changes)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        # The shim may not have made it yet; it appends, so an empty file does no harm.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        try:
            watch = self._inotify.add_watch(f"/proc/self/fd/{fd}", inotify_simple.flags.MODIFY)
        except OSError:
            os.close(fd)
            raise
        self._watches.setdefault(watch, set()).add(token)
        self._followers[token] = _Follower(fd, watch, offset, send)
        self._send_rest(token)

    def stop(self, token: int) -> None:
        """Send what is left, then forget the follower. Unknown tokens are no error."""
        if token not in self._followers:
            return
        self._send_rest(token)
        self.drop(token)

    def drop(self, token: int) -> None:
        """Forget a follower who is gone."""
        follower = self._followers.pop(token, None)
        if follower is None:
            return
        os.close(follower.fd)
        tokens = self._watches.get(follower.watch, set())
        tokens.discard(token)
        if not tokens and self._watches.pop(follower.watch, None) is not None:
            assert self._inotify is not None
            with contextlib.suppress(OSError):  # the kernel may have dropped it already
                self._inotify.rm_watch(follower.watch)

    def _on_changes(self) -> None:
        assert self._inotify is not None
        changed = {event.wd for event in self._inotify.read(timeout=0)}
        for watch in changed:
            for token in list(self._watches.get(watch, ())):
                self._send_rest(token)

    def _send_rest(self, token: int) -> None:
        follower = self._followers[token]
        with contextlib.suppress(OSError):  # a disk that fails: what can be read is sent
            while token in self._followers and (chunk := os.pread(follower.fd, CHUNK_BYTES, follower.offset)):
                follower.offset += len(chunk)
                text = follower.decoder.decode(chunk)
                if text:
                    follower.send(text)
