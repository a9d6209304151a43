"""One attempt from its order to its ending: its timeout, its halts, its output, its record.

`Attempt` holds what is true of every attempt; how its processes are found and their ends are seen is
its subclasses' thought: `OwnAttempt` here, whose processes are all below this process, and
`takeover.TakenOver`, whose shim was killed. Used by the shim's loop, which waits and calls back.
Stdlib only: it is part of the small process.
"""

from __future__ import annotations

import os
import signal
import time

from supervisor import child, process_tree, reaper
from supervisor.record import MAX_TEXT_CHARS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from supervisor.capture import Capture
    from supervisor.order import Order, Terms
    from supervisor.record import Slot

#: While the tree is being killed, it is walked again after this time, doubled each time up to the longest.
FIRST_REWALK_S = 0.001
LONGEST_REWALK_S = 0.25
#: poll takes no more than 24 days at once.
MAX_WAIT_MS = 86_400_000.0


class Attempt:
    """Reads two descriptors: its FIFO's, and `event_fd` (None: not now), for which `on_event` is called."""

    def __init__(self, terms: Terms, slot: Slot, kept: dict[str, Any], capture: Capture) -> None:
        self.id = terms["attempt"]
        self.capture = capture
        self.pid: int | None = kept["pid"]
        self.event_fd: int | None = None
        self.has_ended = False
        self._terms = terms
        self._slot = slot
        self._record = kept
        self._alarms: dict[Callable[[], None], float] = {}  # what is to be done -> monotonic time
        self._rewalk_s = FIRST_REWALK_S
        self._halting = False
        self._killing = False
        self._cause: str | None = None
        self._problem = ""
        self._cpu_s: float | None = None
        self._max_rss_bytes: int | None = None
        if terms["timeout_s"] is not None:
            self._alarms[self._time_out] = kept["began_at"] + terms["timeout_s"]

    # -- for subclasses --------------------------------------------------------------------------

    def on_event(self) -> bool:
        """`event_fd` is readable. False: it is closed now."""
        raise NotImplementedError

    def on_child(self) -> None:
        """Children of this process may have ended."""

    def _signal(self, signals: Iterable[int]) -> None:
        """To every process of the attempt."""
        raise NotImplementedError

    def _status(self) -> dict[str, Any]:
        """The main process's `exit_code` or `signal`, and whatever else of the ending is known better; or a `cause`."""
        raise NotImplementedError

    # -- time ------------------------------------------------------------------------------------

    def wait_ms(self) -> float | None:
        """How long there is nothing to do but to wait for the job."""
        if not self._alarms:
            return None
        return max(0.0, min((min(self._alarms.values()) - time.monotonic()) * 1000, MAX_WAIT_MS))

    def on_time(self) -> None:
        """Do what is due."""
        if not self._alarms:
            return
        now = time.monotonic()
        for step, at in list(self._alarms.items()):
            if at <= now and self._alarms.pop(step, None) is not None:
                step()

    def _after(self, wait_s: float, step: Callable[[], None]) -> None:
        self._alarms[step] = time.monotonic() + wait_s

    def _time_out(self) -> None:
        self._decide("timeout")
        self._stop()

    # -- being ended -----------------------------------------------------------------------------

    def halt(self, how: str) -> None:
        """Someone asks: `stop`, `kill` or `wind_down`. The first reason to end it is the one that counts."""
        if how == "wind_down":
            self._decide("exited")
            if not self._halting and self._stop not in self._alarms:
                self._after(self._terms["stop_timeout_s"], self._stop)
            return
        self._decide("stopped")
        if how == "kill":
            self._kill()
        else:
            self._stop()

    def _decide(self, cause: str) -> None:
        """Kept, so that whoever takes over knows it."""
        if self._cause is None:
            self._cause = self._record["cause"] = cause
            self._save(self._record)

    def _stop(self) -> None:
        """Ask politely, once; force follows."""
        if self._halting:
            return
        self._halting = True
        if self._terms["stop_signal"] == signal.SIGKILL:
            self._kill()
            return
        self._signal((self._terms["stop_signal"], signal.SIGCONT))
        self._after(self._terms["stop_timeout_s"], self._kill)

    def _kill(self) -> None:
        """Kill all there is, and look again: a process may have been born behind the walk's back."""
        self._halting = self._killing = True
        self._signal((signal.SIGKILL,))
        self._after(self._rewalk_s, self._kill)
        self._rewalk_s = min(self._rewalk_s * 2, LONGEST_REWALK_S)

    # -- the end ---------------------------------------------------------------------------------

    def end(self) -> dict[str, Any]:
        """Write the ending into the record and return it: the fields of events.Ending."""
        self._close_output()
        ending = {
            "cause": self._cause or "exited",
            "started_at": self._record["started_at"],
            "finished_at": time.time(),
            "duration_s": time.monotonic() - self._record["began_at"],
            "cpu_s": self._cpu_s,
            "max_rss_bytes": self._max_rss_bytes,
            "log_dropped_bytes": self.capture.dropped_bytes,
        }
        if self._problem:
            ending |= {"cause": "unstartable", "text": f"could not start: {self._problem}"[:MAX_TEXT_CHARS]}
        else:
            ending |= self._status()
        self._record["ending"] = ending
        del self._record["terms"], self._record["env"]  # nobody needs them now, and the text needs the room
        self._save(self._record)
        return ending

    def unstartable(self, problem: str) -> dict[str, Any]:
        """The ending of an attempt of which nothing ran."""
        self._problem = problem
        return self.end()

    def give_up(self, reason: str) -> None:
        """Nothing ran, and the attempt is not consumed."""
        self._close_output()
        self._save({"given_up": reason})

    def _close_output(self) -> None:
        self.capture.close()
        self.capture.fifo.close(reuse=not self._terms["user"])  # else that user owns it

    def _save(self, content: dict[str, Any]) -> None:
        try:
            self._slot.rewrite(content)
        except OSError:
            pass  # jobd is told as well; only should it die before it listens, this is lost


class OwnAttempt(Attempt):
    """One that this process starts. It has ended when no child is left at all (ECHILD).

    `event_fd` is a pipe from a child that loads its program.
    """

    def __init__(self, order: Order, slot: Slot, kept: dict[str, Any], capture: Capture) -> None:
        super().__init__(order, slot, kept, capture)
        self._order = order
        self._main_status: dict[str, int] | None = None
        self._cpu_s = 0.0
        self.shortage = ""  # why nothing ran, if that is not the job's fault

    def start(self, stage: child.Stage, by_fork: bool) -> None:
        """UnstartableError, child.ShortageError: nothing runs."""
        if by_fork:
            self.pid, self.event_fd = child.fork(self._order, stage, self.capture.fifo.job_fd, self._begin)
        else:
            self.pid = child.spawn(self._order, stage, self.capture.fifo.job_fd, self._begin)
        try:
            found = process_tree.identity(self.pid)  # there, if only as a zombie
        except OSError:
            found = None
        self._record |= {"pid": self.pid, "pid_start": found[1] if found else None}
        self._save(self._record)

    def _begin(self) -> None:
        try:
            self._slot.begin()
        except OSError as error:
            raise child.ShortageError(f"the state directory cannot be written: {error}") from None

    def on_event(self) -> bool:
        """The forked child has loaded the program, or has said why it cannot."""
        assert self.event_fd is not None
        problem = os.read(self.event_fd, child.MAX_STATUS_BYTES).decode(errors="replace")
        if problem.startswith(child.SHORTAGE_MARK):
            self.shortage = problem.removeprefix(child.SHORTAGE_MARK)
        self._problem = problem
        os.close(self.event_fd)
        self.event_fd = None
        return False

    @property
    def is_loaded(self) -> bool:
        return self.event_fd is None and not self._problem

    def on_child(self) -> None:
        """Take every child that has ended. When there is none at all any more, the attempt has ended."""
        while True:
            try:
                pid = reaper.next_ended()
            except ChildProcessError:
                self.has_ended = True
                return
            if pid is None:
                break
            if pid == self.pid:
                self._on_main_end()
            _pid, _status, usage = os.wait4(pid, 0)
            self._cpu_s = (self._cpu_s or 0.0) + usage.ru_utime + usage.ru_stime
            # The kernel counts from before exec: less than a shim has (some 10 MB) cannot be told.
            self._max_rss_bytes = max(self._max_rss_bytes or 0, usage.ru_maxrss * 1024)
        if self._killing:
            self._kill()
        elif self._main_status is not None and self._terms["finish"] == "main":
            self._stop()

    def _on_main_end(self) -> None:
        """Its status is kept before it is reaped: this process may be killed while others of the attempt live."""
        assert self.pid is not None
        self._main_status = reaper.status_of(self.pid)
        if self._main_status is not None:
            try:
                self._slot.note_main_exit(self._main_status)
            except OSError:
                pass
        if self._terms["finish"] == "main":
            self._decide("exited")

    def _signal(self, signals: Iterable[int]) -> None:
        process_tree.signal_all(_below_us, signals)

    def _status(self) -> dict[str, Any]:
        return dict(self._main_status or {})


def _below_us() -> list[process_tree.Identity]:
    return process_tree.descendants(os.getpid())
