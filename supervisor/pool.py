"""The shims of this daemon: made by the forkserver, given attempts, used again.

Owns the forkserver, the channels to the shims and their pidfds. Knows nothing of what is said over the
channels but the first words. Part of the executor, which alone calls it.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import DecodeError, json

from supervisor import forkserver, reaper
from supervisor.loop import Loop

log = logging.getLogger("jobd")

#: Idle shims that are kept; the others are told to go at once. Each costs 2 MB, making one anew a millisecond.
POOL_KEEP = 4
#: New shims that are asked for until one takes an order.
MAX_NEW_SHIMS = 3
#: What a shim says at most.
MAX_ANSWER_BYTES = 8192


class Shim:
    """A shim of this daemon. `attempt_id` None: it is idle. `pid` and `pidfd`: once it has said hello."""

    __slots__ = ("attempt_id", "channel", "pid", "pidfd", "refusal", "stop_timeout_s", "takes_over")

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.pid: int | None = None
        self.pidfd: int | None = None
        self.attempt_id: int | None = None
        self.takes_over = False  # the attempt was another one's before
        self.stop_timeout_s = 0.0  # the attempt's
        self.refusal: str | None = None  # why it could not be made


class Pool:
    """`on_message` gets each message of a shim, `on_gone` each shim that has died or could not be made."""

    def __init__(
        self,
        state_dir: Path,
        loop: Loop,
        on_message: Callable[[Shim, dict[str, Any]], None],
        on_gone: Callable[[Shim], None],
    ) -> None:
        self._state_dir = state_dir
        self._loop = loop
        self._on_message = on_message
        self._on_gone = on_gone
        self._server: socket.socket | None = None
        self._requests: collections.deque[socket.socket] = collections.deque()
        self._idle: list[Shim] = []
        self._shims: set[Shim] = set()

    def open(self) -> None:
        """Start the forkserver."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        context = multiprocessing.get_context("fork")  # forks only to become another program
        context.Process(target=forkserver.become, args=(its.fileno(), str(self._state_dir))).start()
        its.close()
        self._server = ours
        self._loop.watch(ours.fileno(), self._drop_server)

    def close(self) -> None:
        """Idle shims and an idle forkserver exit; busy ones finish."""
        for shim in list(self._shims):
            self._let_go(shim)
        self._idle.clear()
        self._drop_server()

    def assign(self, attempt_id: int, text: bytes) -> Shim:
        """Give an attempt to a shim, an idle one if there is. OSError: none can be made."""
        for _ in range(len(self._idle) + MAX_NEW_SHIMS):
            shim = self._idle.pop() if self._idle else self._new_shim()
            if self.send(shim, text):
                break
            # It or its forkserver has died, and that has not been noticed yet. Should it live after all, it leaves.
            with contextlib.suppress(OSError):
                shim.channel.shutdown(socket.SHUT_RDWR)
        else:
            raise OSError("no shim takes the order")
        shim.attempt_id = attempt_id
        shim.takes_over = False
        return shim

    def send(self, shim: Shim, text: bytes) -> bool:
        """False: it has gone."""
        try:
            return bool(shim.channel.send(text))
        except OSError:
            return False

    def put_back(self, shim: Shim) -> None:
        """Its attempt has ended. The one used last is used next: its memory is still at hand."""
        shim.attempt_id = None
        if len(self._idle) < POOL_KEEP:
            self._idle.append(shim)
        else:
            self._let_go(shim)

    def reap(self) -> None:
        """A child of jobd has ended. If the forkserver has died, that may be a shim, or what a killed shim has left."""
        with contextlib.suppress(ChildProcessError):
            while True:
                own = {child.pid for child in multiprocessing.active_children()}  # it reaps those that have ended
                pid = reaper.next_ended()
                if pid is None:
                    return
                if pid not in own:
                    reaper.bury(pid, f"{self._state_dir}/attempts")

    # ---- channels ------------------------------------------------------------------------------

    def _new_shim(self) -> Shim:
        """Ask for one. What is sent to it waits in its channel until it lives. OSError: no descriptors."""
        if self._server is None:
            self.open()
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        shim = Shim(ours)
        self._shims.add(shim)
        self._loop.watch(ours.fileno(), partial(self._hear, shim))
        self._requests.append(its)
        self._pass_requests()
        return shim

    def _hear(self, shim: Shim) -> None:
        text = self._receive(shim)
        if text is None:
            return
        if not text:
            self._lose(shim)
            return
        try:
            message = json.decode(text)
        except DecodeError as error:
            log.error("a shim (pid %s) does not make sense: %s", shim.pid, error)
            self._lose(shim)
            return
        if message["what"] == "hello":
            shim.pid = message["pid"]
            return
        if message["what"] == "not_started" and message["attempt"] is None:
            shim.refusal = message["reason"]  # there is no shim; its channel closes next
            return
        self._on_message(shim, message)

    def _lose(self, shim: Shim) -> None:
        self._let_go(shim)
        if shim in self._idle:
            self._idle.remove(shim)
        self._on_gone(shim)

    def _receive(self, shim: Shim) -> bytes | None:
        """One message; empty: the shim is gone; None: nothing there."""
        try:
            if shim.pidfd is not None:
                return shim.channel.recv(MAX_ANSWER_BYTES)
            text, fds, _, _ = socket.recv_fds(shim.channel, MAX_ANSWER_BYTES, 1)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return self._receive(shim)  # it has left our words unread; what it said before comes after this error
        except OSError:
            return b""
        if fds:
            shim.pidfd = fds[0]
            os.set_inheritable(shim.pidfd, False)
        return text

    def _let_go(self, shim: Shim) -> None:
        self._shims.discard(shim)
        self._loop.unwatch(shim.channel.fileno())
        shim.channel.close()
        if shim.pidfd is not None:
            os.close(shim.pidfd)
            shim.pidfd = None

    # ---- the forkserver --------------------------------------------------------------------------

    def _drop_server(self) -> None:
        """It has died, or we leave. The next request starts another; its shims are none the worse for it."""
        if self._server is not None:
            self._loop.unwatch(self._server.fileno())
            self._server.close()
            self._server = None
        while self._requests:
            self._requests.popleft().close()  # whoever waits for this shim is told by its channel

    def _pass_requests(self) -> None:
        """Hand over as many as the socket takes now; the rest when it takes more."""
        assert self._server is not None
        try:
            while self._requests:
                socket.send_fds(self._server, [b"s"], [self._requests[0].fileno()])
                self._requests.popleft().close()
        except BlockingIOError:
            pass
        except OSError:
            self._drop_server()
            return
        self._loop.watch(self._server.fileno(), self._drop_server, self._pass_requests if self._requests else None)


def send_signal(pidfd: int, signum: int) -> None:
    """To the process of a pidfd, if it still lives."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signum)
