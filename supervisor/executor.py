"""The daemon's side of the attempts: what its shims say, and what the records of all others tell.

Owns the pool of shims, the pidfds of adopted ones, the attempts' records.
Says what has become of attempts by `emit`, only ever from a callback of the loop. Must not know the
engine, the store, or why something is started or ended. Called by the daemon.

However a shim gets out of sight, there is one answer: `_settle` looks at the record. It says whether
the attempt never began, has ended, goes on, or was lost. If its shim was killed, another shim takes it over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import json

from supervisor import kept_record, order, process_tree, record
from supervisor.core.events import Cause, Ending, Event, Exited, Halt, Launch, NotStarted, Signal, Started
from supervisor.core.model import Limits
from supervisor.loop import Loop
from supervisor.pool import Pool, Shim, send_signal

log = logging.getLogger("jobd")

#: Once a shim has died, the files that it left are removed after this time.
SWEEP_AFTER_S = 1.0
#: What cannot be found out or done for now (the disk is full, no process can be made) is tried again after this time.
RETRY_S = 1.0
#: A shim that has not ended its attempt so long after the latest moment for it does not work, and is replaced.
OBEY_S = 10.0

#: Of an attempt's id; SQLite has no more.
MAX_ID_DIGITS = 18

NEVER_BEGAN = "jobd or its shim went away before the start"
WHAT_NOW = "see what the job did, then retry"


class _Adopted:
    """A busy shim that an earlier daemon had. It goes by itself when its attempt has ended."""

    __slots__ = ("pid", "pidfd", "stop_timeout_s")

    def __init__(self, pid: int, pidfd: int, stop_timeout_s: float) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.stop_timeout_s = stop_timeout_s


class Executor:
    """Starts, ends and follows attempts. `open` first; `close` leaves alone what runs."""

    def __init__(self, state_dir: Path, socket_path: Path, loop: Loop, emit: Callable[[Event], None]) -> None:
        self._state_dir = state_dir
        self._socket_path = str(socket_path)
        self._loop = loop
        self._emit = emit
        self._boot = process_tree.boot_id()
        self._is_open = False
        self._pool = Pool(state_dir, loop, self._on_message, self._on_gone)
        self._busy: dict[int, Shim | _Adopted] = {}
        self._pids: dict[int, int] = {}
        self._halts: dict[int, Halt] = {}  # what was asked last, for whoever takes the attempt over

    def open(self) -> None:
        """Make the folders and start the forkserver."""
        for name in ("attempts", "fifos", "logs"):
            (self._state_dir / name).mkdir(mode=0o750, parents=True, exist_ok=True)
        self._is_open = True
        self._sweep()
        self._pool.open()

    def start(self, launch: Launch) -> None:
        """Started and Exited follow, or Exited alone (it could not start), or NotStarted."""
        attempt_id = launch.attempt_id
        text = json.encode({"start": self._order(launch)})
        if len(text) > order.MAX_MESSAGE_BYTES:
            problem = f"command and env of job {launch.job.name} take {len(text)} bytes, over {order.MAX_MESSAGE_BYTES}"
            problem = f"could not start: {problem}: put them into a script or an env_file"
            ending = Ending(cause=Cause.UNSTARTABLE, text=problem)
            self._later(partial(self._emit, Exited(attempt_id, ending)))
            return
        try:
            shim = self._pool.assign(attempt_id, text)
        except OSError as error:
            self._later(partial(self._emit, NotStarted(attempt_id, f"no shim can be made: {error}")))
            return
        shim.stop_timeout_s = launch.job.stop_timeout_s
        self._busy[attempt_id] = shim

    def signal(self, decision: Signal) -> None:
        """End an attempt. Nothing happens if it has ended already."""
        self._halts[decision.attempt_id] = decision.halt
        if shim := self._busy.get(decision.attempt_id):
            self._pass_on(shim, decision.attempt_id, decision.halt)

    def recover(self, boots: Mapping[int, str | None]) -> None:
        """Find out what has become of attempts that were under way when the last daemon left.

        `boots`: attempt id -> the boot of the machine in which it was launched; None is not known.
        """
        for attempt_id, boot in boots.items():
            self._later(partial(self._settle, attempt_id, in_this_boot=boot == self._boot))

    def recorded(self) -> list[int]:
        """Attempts of which there is a record."""
        stems = [path.stem for path in (self._state_dir / "attempts").glob("*.json")]
        return [int(stem) for stem in stems if stem.isdecimal() and len(stem) <= MAX_ID_DIGITS]

    def pid_of(self, attempt_id: int) -> int | None:
        """The main process of an attempt that runs."""
        return self._pids.get(attempt_id)

    def hindrance(self, attempt_id: int) -> str | None:
        """What keeps its shim from doing its work, for people; None: nothing."""
        shim = self._busy.get(attempt_id)
        if shim is None or shim.pid is None or _state(shim.pid) not in ("T", "t"):
            return None
        return f"its shim is stopped: `kill -CONT {shim.pid}` lets it see the job's end"

    def forget(self, attempt_id: int) -> None:
        """What became of it (Exited or NotStarted) is committed: the record is not needed any more."""
        self._halts.pop(attempt_id, None)
        try:
            record.remove(self._record_path(attempt_id))
        except OSError as error:  # the next jobd tries again
            log.warning("%s cannot be removed: %s", self._record_path(attempt_id), error.strerror)

    def reap(self) -> None:
        """A child of jobd has ended, or has come to it as the subreaper."""
        self._pool.reap()

    def close(self) -> None:
        """Leave. Idle shims and an idle forkserver exit; what runs goes on, for the next daemon to recover."""
        self._is_open = False
        self._pool.close()
        for shim in self._busy.values():
            if isinstance(shim, _Adopted):
                self._release(shim)
        self._busy.clear()
        self._pids.clear()

    # ---- being ended -----------------------------------------------------------------------------

    def _pass_on(self, shim: Shim | _Adopted, attempt_id: int, halt: Halt) -> None:
        """Have a shim end its attempt, and see to it that it does."""
        text = json.encode({"halt": attempt_id, "how": halt.value})
        told = isinstance(shim, Shim) and self._pool.send(shim, text)
        if not told and shim.pidfd is not None:  # there is no channel to it, or no room in it
            send_signal(shim.pidfd, order.HALT_SIGNALS[halt.value])
        if shim.pidfd is not None:
            send_signal(shim.pidfd, signal.SIGCONT)  # someone may have stopped it
        patience_s = {Halt.STOP: 1, Halt.KILL: 0, Halt.WIND_DOWN: 2}[halt] * shim.stop_timeout_s + OBEY_S
        self._at(patience_s, partial(self._replace_if_stuck, attempt_id, shim))

    def _replace_if_stuck(self, attempt_id: int, shim: Shim | _Adopted) -> None:
        """It should have ended its attempt by now. If it does not even wait for that, another one has to do it."""
        if self._busy.get(attempt_id) is not shim or shim.pidfd is None:
            return
        if shim.pid is not None and _state(shim.pid) in ("T", "t"):
            log.error("attempt %d: its shim (pid %d) does nothing; it is replaced", attempt_id, shim.pid)
            send_signal(shim.pidfd, signal.SIGKILL)

    # ---- shims of this daemon --------------------------------------------------------------------

    def _on_message(self, shim: Shim, message: dict[str, Any]) -> None:
        what, attempt_id = message["what"], message["attempt"]
        if what in ("started", "taken"):
            self._started(attempt_id, message["pid"], message["at"])
            return
        self._pool.put_back(shim)
        if what == "ended":
            self._exited(attempt_id, kept_record.ending(message["ending"]))
        elif what == "not_started":
            self._not_started(attempt_id, message["reason"])
        elif what == "not_taken":
            del self._busy[attempt_id]
            self._at(RETRY_S, partial(self._settle, attempt_id))

    def _on_gone(self, shim: Shim) -> None:
        """It was killed, or never lived."""
        self._at(SWEEP_AFTER_S, self._sweep)
        if shim.attempt_id is None:
            return
        del self._busy[shim.attempt_id]
        if shim.takes_over:  # not at once: should it fail again and again
            self._at(RETRY_S, partial(self._settle, shim.attempt_id))
        else:
            self._settle(shim.attempt_id, shim.refusal or NEVER_BEGAN)

    # ---- records ---------------------------------------------------------------------------------

    def _settle(self, attempt_id: int, reason: str = NEVER_BEGAN, in_this_boot: bool = True) -> None:
        """Nobody tells us about this attempt: its record does."""
        path = self._record_path(attempt_id)
        try:
            kept = record.read(path)
            if kept is None and not in_this_boot:
                # Records need not survive a power cut: that there is none says nothing.
                self._lost(attempt_id, f"the machine went down while it ran: {WHAT_NOW}")
                return
            if kept is None and record.claim(path, reason):
                kept = {"given_up": reason}
            if kept is None:  # a shim was quicker, and may have freed it again: look again
                self._later(partial(self._settle, attempt_id, reason))
            else:
                kept_record.check(kept)
                self._follow(attempt_id, kept)
        except OSError:  # it cannot be found out for now
            self._at(RETRY_S, partial(self._settle, attempt_id, reason, in_this_boot))
        except ValueError as error:
            self._lost(attempt_id, f"its record {path} is damaged ({error}): {WHAT_NOW}")

    def _follow(self, attempt_id: int, kept: record.Record) -> None:
        """Do what the record of an attempt calls for."""
        if "given_up" in kept:
            self._not_started(attempt_id, kept_record.storable(kept["given_up"]))
        elif kept["ending"]:
            self._exited(attempt_id, kept_record.ending(kept["ending"]))
        elif kept["boot"] != self._boot:
            self._lost(attempt_id, f"the machine went down while it ran: {WHAT_NOW}")
        elif (pidfd := _find_shim(kept)) is not None:
            self._adopt(attempt_id, kept, pidfd)
        elif "terms" in kept and not kept["begun"]:
            self._not_started(attempt_id, f"its shim (pid {kept['shim']}) was killed before the start")
        elif "terms" in kept:
            self._take_over(attempt_id, kept)
        else:  # by a jobd of a version that took nothing over
            self._lost(attempt_id, f"its shim (pid {kept['shim']}) was killed, so nobody saw the end: {WHAT_NOW}")

    def _take_over(self, attempt_id: int, kept: record.Record) -> None:
        """Its shim was killed: have another one follow what is left."""
        try:
            shim = self._pool.assign(attempt_id, json.encode({"take_over": attempt_id}))
        except OSError:
            self._at(RETRY_S, partial(self._settle, attempt_id))
            return
        log.warning("attempt %d: its shim (pid %d) was killed; another takes over", attempt_id, kept["shim"])
        shim.takes_over = True
        shim.stop_timeout_s = kept["terms"]["stop_timeout_s"]
        self._busy[attempt_id] = shim
        if halt := self._halts.get(attempt_id):
            self._pass_on(shim, attempt_id, halt)

    def _adopt(self, attempt_id: int, kept: record.Record, pidfd: int) -> None:
        shim = _Adopted(kept["shim"], pidfd, kept.get("terms", {}).get("stop_timeout_s", 0.0))
        self._busy[attempt_id] = shim
        self._loop.watch(pidfd, partial(self._end_of_adopted, attempt_id, shim))
        self._started(attempt_id, kept["pid"], kept["started_at"])
        if halt := self._halts.get(attempt_id):
            self._pass_on(shim, attempt_id, halt)

    def _end_of_adopted(self, attempt_id: int, shim: _Adopted) -> None:
        self._at(SWEEP_AFTER_S, self._sweep)
        self._release(shim)
        del self._busy[attempt_id]
        self._settle(attempt_id)

    def _release(self, shim: _Adopted) -> None:
        self._loop.unwatch(shim.pidfd)
        os.close(shim.pidfd)

    def _sweep(self) -> None:
        """Remove what shims that were killed have left behind. A FIFO stays while its job may write to it."""
        attempts, fifos = self._state_dir / "attempts", self._state_dir / "fifos"
        records = [kept for path in attempts.glob("*.json") if (kept := _read_or_none(str(path)))]
        going_on = [kept for kept in records if not record.is_over(kept)]
        needed = {fifos / str(kept.get("fifo")) for kept in going_on}
        needed |= {attempts / f"{kept.get('shim')}-{kept.get('shim_start')}" for kept in going_on}
        for path in attempts.glob("*.claim"):
            path.unlink(missing_ok=True)  # jobd was killed meanwhile
        for path in {*attempts.glob("*-*"), *fifos.glob("*-*")} - needed:
            pid, _, start = path.name.partition("-")
            if pid.isdecimal() and start.isdecimal() and _state(int(pid), int(start)) in ("", "Z", "X"):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _record_path(self, attempt_id: int) -> str:
        return f"{self._state_dir}/attempts/{attempt_id}.json"

    # ---- what is said ----------------------------------------------------------------------------

    def _started(self, attempt_id: int, pid: int | None, at: float) -> None:
        """Once for each attempt, whoever follows it."""
        if pid is not None and attempt_id not in self._pids:
            self._pids[attempt_id] = pid
            self._emit(Started(attempt_id, pid, at))

    def _exited(self, attempt_id: int, ending: Ending) -> None:
        self._busy.pop(attempt_id, None)
        self._pids.pop(attempt_id, None)
        self._emit(Exited(attempt_id, ending))

    def _lost(self, attempt_id: int, text: str) -> None:
        self._exited(attempt_id, Ending(cause=Cause.LOST, text=text))

    def _not_started(self, attempt_id: int, reason: str) -> None:
        self._busy.pop(attempt_id, None)
        self._emit(NotStarted(attempt_id, reason))

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
        self._at(0.0, callback)

    def _at(self, wait_s: float, callback: Callable[[], None]) -> None:
        """After this time, unless we have left by then."""
        self._loop.call_at(time.monotonic() + wait_s, lambda: callback() if self._is_open else None)


def _read_or_none(path: str) -> record.Record | None:
    with contextlib.suppress(OSError, ValueError):
        return record.read(path)
    return None


def _state(pid: int, start: int | None = None) -> str:
    """As `process_tree.state`; `?` if it cannot be told for now."""
    try:
        return process_tree.state(pid, start)
    except OSError:
        return "?"


def _find_shim(kept: record.Record) -> int | None:
    """A pidfd of the shim that has this record, if it lives. It is of this boot."""
    pidfd = process_tree.open_process((kept["shim"], kept["shim_start"]))
    if pidfd is not None and process_tree.has_ended(pidfd):
        os.close(pidfd)
        return None
    return pidfd
