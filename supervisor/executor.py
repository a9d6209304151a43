"""The daemon's side of the attempts: a pool of shims, and the shims of an earlier daemon.

Owns the forkserver, the channels to the shims, the pidfds of adopted ones, the attempts' records.
Says what has become of attempts by `emit`, only ever from a callback of the loop. Must not know the
engine, the store, or why something is started or ended. Called by the daemon.

However a shim gets out of sight, there is one answer: `_settle` looks at the record. It says whether
the attempt never began, has ended, goes on, or was lost.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import json

from supervisor import forkserver, order, process_tree, record
from supervisor.core.events import Cause, Ending, Event, Exited, Launch, NotStarted, Signal, Started
from supervisor.core.model import Limits
from supervisor.loop import Loop

#: Idle shims that are kept; the others are told to go at once. Each costs 2 MB, making one anew a millisecond.
POOL_KEEP = 4
#: What a shim says at most.
MAX_ANSWER_BYTES = 8192
#: Once a shim has died, the files that it left are removed after this time.
SWEEP_AFTER_S = 1.0
#: A record that cannot be read or made for now (the disk is full) is tried again after this time.
RECORD_RETRY_S = 1.0

NEVER_BEGAN = "jobd or its shim went away before the start"


class _Shim:
    """A shim of this daemon. `attempt_id` None: it is idle. `pidfd`: once it has said hello."""

    __slots__ = ("attempt_id", "channel", "pidfd", "reason")

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.attempt_id: int | None = None
        self.pidfd: int | None = None
        self.reason = NEVER_BEGAN  # should nothing ever run


class _Adopted:
    """A busy shim that an earlier daemon had. It goes by itself when its attempt has ended."""

    __slots__ = ("pidfd",)

    def __init__(self, pidfd: int) -> None:
        self.pidfd = pidfd


class Executor:
    """Starts, ends and follows attempts. `open` first; `close` leaves alone what runs."""

    def __init__(self, state_dir: Path, socket_path: Path, loop: Loop, emit: Callable[[Event], None]) -> None:
        self._state_dir = state_dir
        self._socket_path = str(socket_path)
        self._loop = loop
        self._emit = emit
        self._boot = process_tree.boot_id()
        self._is_open = False
        self._server: socket.socket | None = None
        self._requests: collections.deque[socket.socket] = collections.deque()
        self._idle: list[_Shim] = []
        self._shims: set[_Shim] = set()
        self._busy: dict[int, _Shim | _Adopted] = {}
        self._pids: dict[int, int] = {}

    def open(self) -> None:
        """Make the folders and start the forkserver."""
        for name in ("attempts", "fifos", "logs"):
            (self._state_dir / name).mkdir(mode=0o750, parents=True, exist_ok=True)
        self._is_open = True
        self._sweep()
        self._start_server()

    def start(self, launch: Launch) -> None:
        """Started and Exited follow, or Exited alone (it could not start), or NotStarted."""
        text = json.encode({"start": self._order(launch)})
        if len(text) > order.MAX_MESSAGE_BYTES:
            problem = f"command and env of job {launch.job.name} take {len(text)} bytes, over {order.MAX_MESSAGE_BYTES}"
            problem = f"could not start: {problem}: put them into a script or an env_file"
            ending = Ending(cause=Cause.UNSTARTABLE, text=problem)
            self._later(partial(self._emit, Exited(launch.attempt_id, ending)))
            return
        try:
            shim = self._idle.pop() if self._idle else self._new_shim()
            while not self._send(shim, text):  # an idle one has died, and its end has not been noticed yet
                shim = self._idle.pop() if self._idle else self._new_shim()
        except OSError as error:
            reason = f"no shim can be made: {error}"
            self._later(partial(self._emit, NotStarted(launch.attempt_id, reason)))
            return
        shim.attempt_id = launch.attempt_id
        self._busy[launch.attempt_id] = shim

    def signal(self, decision: Signal) -> None:
        """End an attempt. Nothing happens if it has ended already."""
        shim = self._busy.get(decision.attempt_id)
        how = decision.halt.value
        if isinstance(shim, _Shim):
            self._send(shim, json.encode({"halt": decision.attempt_id, "how": how}))
        elif shim:
            _send_signal(shim.pidfd, order.HALT_SIGNALS[how])
        if shim and shim.pidfd is not None:
            _send_signal(shim.pidfd, signal.SIGCONT)  # someone may have stopped it

    def recover(self, attempt_ids: Iterable[int]) -> None:
        """Find out what has become of attempts that were under way when the last daemon left."""
        for attempt_id in attempt_ids:
            self._later(partial(self._settle, attempt_id))

    def pid_of(self, attempt_id: int) -> int | None:
        """The main process of an attempt that runs."""
        return self._pids.get(attempt_id)

    def forget(self, attempt_id: int) -> None:
        """What became of it (Exited or NotStarted) is committed: the record is not needed any more."""
        record.remove(self._record_path(attempt_id))

    def close(self) -> None:
        """Leave. Idle shims and an idle forkserver exit; what runs goes on, for the next daemon to recover."""
        self._is_open = False
        for shim in self._shims | {shim for shim in self._busy.values() if isinstance(shim, _Adopted)}:
            self._let_go(shim)
        self._drop_server()
        self._idle.clear()
        self._busy.clear()
        self._pids.clear()

    # ---- shims of this daemon --------------------------------------------------------------------

    def _new_shim(self) -> _Shim:
        """Ask for one. What is sent to it waits in its channel until it lives. OSError: no descriptors."""
        if self._server is None:
            self._start_server()
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        shim = _Shim(ours)
        self._shims.add(shim)
        self._loop.watch(ours.fileno(), partial(self._hear, shim))
        self._requests.append(its)
        self._pass_requests()
        return shim

    def _hear(self, shim: _Shim) -> None:
        text = self._receive(shim)
        if text is None:
            return
        if not text:
            self._lose_sight(shim)
            return
        message = json.decode(text)
        what, attempt_id = message["what"], message.get("attempt")
        if what == "started":
            self._pids[attempt_id] = message["pid"]
            self._emit(Started(attempt_id, message["pid"], message["at"]))
        elif what == "ended":
            self._put_back(shim)
            self._exited(attempt_id, _ending(message["ending"]))
        elif what == "not_started" and attempt_id is None:
            shim.reason = message["reason"]  # there is no shim; its channel closes next
        elif what == "not_started":
            self._put_back(shim)
            self._not_started(attempt_id, message["reason"])

    def _receive(self, shim: _Shim) -> bytes | None:
        """One message; empty: the shim is gone; None: nothing there."""
        try:
            if shim.pidfd is not None:
                return shim.channel.recv(MAX_ANSWER_BYTES)
            text, fds, _, _ = socket.recv_fds(shim.channel, MAX_ANSWER_BYTES, 1)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        if fds:
            shim.pidfd = fds[0]
            os.set_inheritable(shim.pidfd, False)
        return text

    def _send(self, shim: _Shim, text: bytes) -> bool:
        try:
            return bool(shim.channel.send(text))
        except OSError:
            return False

    def _put_back(self, shim: _Shim) -> None:
        """Its attempt has ended. The one used last is used next: its memory is still at hand."""
        shim.attempt_id = None
        if len(self._idle) < POOL_KEEP:
            self._idle.append(shim)
        else:
            self._let_go(shim)

    def _lose_sight(self, shim: _Shim) -> None:
        """The channel has closed: there never was a shim, or it has died."""
        self._loop.call_at(time.monotonic() + SWEEP_AFTER_S, self._if_open(self._sweep))
        self._let_go(shim)
        if shim in self._idle:
            self._idle.remove(shim)
        if shim.attempt_id is not None:
            del self._busy[shim.attempt_id]
            self._settle(shim.attempt_id, shim.reason)

    def _let_go(self, shim: _Shim | _Adopted) -> None:
        if isinstance(shim, _Shim):
            self._shims.discard(shim)
            self._loop.unwatch(shim.channel.fileno())
            shim.channel.close()
        elif shim.pidfd is not None:
            self._loop.unwatch(shim.pidfd)
        if shim.pidfd is not None:
            os.close(shim.pidfd)

    # ---- the forkserver --------------------------------------------------------------------------

    def _start_server(self) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        context = multiprocessing.get_context("fork")  # forks only to become another program
        context.Process(target=forkserver.become, args=(its.fileno(), str(self._state_dir))).start()
        its.close()
        self._server = ours
        self._loop.watch(ours.fileno(), self._drop_server)

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

    # ---- records ---------------------------------------------------------------------------------

    def _settle(self, attempt_id: int, reason: str = NEVER_BEGAN) -> None:
        """Nobody tells us about this attempt: its record does."""
        path = self._record_path(attempt_id)
        try:
            kept = record.read(path)
            if kept is None:
                # Should a shim have been quicker, it is a matter of looking again.
                given_up = record.claim(path, reason)
                kept = {"given_up": reason} if given_up else record.read(path) or {}
        except OSError:
            self._loop.call_at(
                time.monotonic() + RECORD_RETRY_S, self._if_open(partial(self._settle, attempt_id, reason))
            )
            return
        except ValueError as error:
            self._exited(attempt_id, _lost(f"its record {path} is damaged ({error}): see what the job did, then retry"))
            return
        if "given_up" in kept:
            self._not_started(attempt_id, kept["given_up"])
        elif kept["ending"]:
            self._exited(attempt_id, _ending(kept["ending"]))
        elif (pidfd := self._find_shim(kept)) is not None:
            self._adopt(attempt_id, kept, pidfd)
        elif kept["boot"] != self._boot:
            self._exited(attempt_id, _lost("the machine went down while it ran: see what the job did, then retry"))
        else:
            problem = f"its shim (pid {kept['shim']}) was killed, so nobody saw the end"
            self._exited(attempt_id, _lost(f"{problem}: see what the job did, then retry"))

    def _find_shim(self, kept: record.Record) -> int | None:
        """A pidfd of the shim that made this record, if it lives."""
        if kept["boot"] != self._boot:
            return None
        pidfd = process_tree.open_process((kept["shim"], kept["shim_start"]))
        if pidfd is not None and process_tree.has_ended(pidfd):
            os.close(pidfd)
            return None
        return pidfd

    def _adopt(self, attempt_id: int, kept: record.Record, pidfd: int) -> None:
        shim = _Adopted(pidfd)
        self._busy[attempt_id] = shim
        self._loop.watch(pidfd, partial(self._end_of_adopted, attempt_id, shim))
        if kept["pid"] and attempt_id not in self._pids:
            self._pids[attempt_id] = kept["pid"]
            self._emit(Started(attempt_id, kept["pid"], kept["started_at"]))

    def _end_of_adopted(self, attempt_id: int, shim: _Adopted) -> None:
        with contextlib.suppress(ChildProcessError):
            # If its forkserver died, it has become our own child, and a zombie.
            os.waitid(os.P_PIDFD, shim.pidfd, os.WEXITED | os.WNOHANG)
        self._let_go(shim)
        del self._busy[attempt_id]
        self._settle(attempt_id)

    def _exited(self, attempt_id: int, ending: Ending) -> None:
        self._busy.pop(attempt_id, None)
        self._pids.pop(attempt_id, None)
        self._emit(Exited(attempt_id, ending))

    def _not_started(self, attempt_id: int, reason: str) -> None:
        self._busy.pop(attempt_id, None)
        self._emit(NotStarted(attempt_id, reason))

    def _sweep(self) -> None:
        """Remove what shims that were killed have left behind. A FIFO stays while its job may write to it."""
        records = [*(self._state_dir / "attempts").glob("*.json")]
        needed = {kept.get("fifo") for path in records if (kept := _read_or_none(path)) and not kept.get("ending")}
        for path in [*(self._state_dir / "attempts").glob("*-*"), *(self._state_dir / "fifos").glob("*-*")]:
            pid, start = map(int, path.name.split("-"))
            if process_tree.identity(pid) != (pid, start) and path.name not in needed:
                path.unlink(missing_ok=True)

    def _record_path(self, attempt_id: int) -> str:
        return f"{self._state_dir}/attempts/{attempt_id}.json"

    # ---- small things ----------------------------------------------------------------------------

    def _order(self, launch: Launch) -> order.Order:
        job = launch.job
        own_env = {
            "JOBD_JOB": job.name,
            "JOBD_DAG": job.dag,
            "JOBD_RUN": launch.run,
            "JOBD_RUN_DATE": launch.run_date,
            "JOBD_ATTEMPT": str(launch.number),
            "JOBD_SOCKET": self._socket_path,
        }
        limits = {name: value for name in Limits.__slots__ if (value := getattr(job.limits, name)) is not None}
        return {
            "attempt": launch.attempt_id,
            "command": job.command if isinstance(job.command, str) else list(job.command),
            "dir": job.dir,
            "user": job.user,
            "umask": job.umask,
            "limits": limits,
            "timezone": launch.timezone,
            "env_file": job.env_file,
            "env": job.env,
            "own_env": own_env,
            "log": launch.log,
            "log_max_bytes": job.log_max_bytes,
            "finish": job.finish.value,
            "timeout_s": job.timeout_s,
            "stop_signal": job.stop_signal,
            "stop_timeout_s": job.stop_timeout_s,
        }

    def _later(self, callback: Callable[[], None]) -> None:
        """On the next turn of the loop, unless we have left by then."""
        self._loop.call_at(0.0, self._if_open(callback))

    def _if_open(self, callback: Callable[[], None]) -> Callable[[], None]:
        return lambda: callback() if self._is_open else None


def _ending(fields: dict[str, Any]) -> Ending:
    """From a shim's words; what another version may have added is left out."""
    known: dict[str, Any] = {name: value for name, value in fields.items() if name in Ending.__slots__}
    return Ending(**{**known, "cause": Cause(fields["cause"])})


def _read_or_none(path: Path) -> record.Record | None:
    with contextlib.suppress(OSError, ValueError):
        return record.read(str(path))
    return None


def _lost(text: str) -> Ending:
    return Ending(cause=Cause.LOST, text=text)


def _send_signal(pidfd: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signum)
