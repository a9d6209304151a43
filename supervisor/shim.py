"""The process around one attempt: starts it, captures its output, stops it, sees its end, records it.

A shim is the subreaper of its attempt. Whatever the job starts, daemonised or not, comes back to
the shim when its parent dies, so "no child is left" (ECHILD) is exactly "the attempt has ended".
One attempt at a time; afterwards the shim goes back to the executor's pool. It outlives jobd: a busy
shim goes on, writes the ending into the record, and leaves.
Forked by `supervisor.forkserver`; talks to `supervisor.executor` in the words of `supervisor.order`.
Stdlib only, and no more of it than needed: there are as many shims as running jobs.
"""

# pathlib is too large for the small processes
# ruff: noqa: PTH118, PTH119

from __future__ import annotations

import json
import os
import select
import signal
import time

from supervisor import child, process_tree
from supervisor.capture import Capture, Fifo
from supervisor.mounts import Mounts
from supervisor.order import HALT_SIGNALS, MAX_MESSAGE_BYTES, UnstartableError
from supervisor.record import MAX_TEXT_CHARS, Slot, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from supervisor.order import Order

#: While the tree is being killed, it is walked again after this time, doubled each time up to the longest.
FIRST_REWALK_S = 0.001
LONGEST_REWALK_S = 0.25
NEVER = float("inf")

HALT_OF_SIGNAL = {int(signum): how for how, signum in HALT_SIGNALS.items()}


class Places:
    """The folders of the state directory that a shim writes to, and this boot's name."""

    __slots__ = ("attempts", "boot", "fifos", "logs")

    def __init__(self, state_dir: str) -> None:
        self.attempts = os.path.join(state_dir, "attempts")
        self.fifos = os.path.join(state_dir, "fifos")
        self.logs = os.path.join(state_dir, "logs")
        self.boot = process_tree.boot_id()


class Attempt:
    """One attempt from its order to its ending. Reads two descriptors: `output_fd` and, while it loads, `status_fd`."""

    def __init__(self, order: Order, slot: Slot, kept: dict[str, Any], capture: Capture) -> None:
        self.id = order["attempt"]
        self.order = order
        self.capture = capture
        self.pid = 0
        self.status_fd: int | None = None
        self.has_ended = False
        self._slot = slot
        self._record = kept
        self._began_at = time.monotonic()
        self._timeout_at = NEVER if order["timeout_s"] is None else self._began_at + order["timeout_s"]
        self._step_at = NEVER
        self._step: Callable[[], None] = self._kill
        self._rewalk_s = FIRST_REWALK_S
        self._halting = False
        self._killing = False
        self._cause: str | None = None
        self._main_status: int | None = None
        self._problem = ""
        self._cpu_s = 0.0
        self._max_rss_bytes = 0

    def start(self, stage: child.Stage, by_fork: bool) -> None:
        """UnstartableError, child.ShortageError: nothing runs."""
        if by_fork:
            self.pid, self.status_fd = child.fork(self.order, stage, self.capture.fifo.job_fd)
        else:
            self.pid = child.spawn(self.order, stage, self.capture.fifo.job_fd)
        self._record["pid"] = self.pid
        self._save(self._record)

    def loaded(self) -> bool:
        """The forked child has loaded the program (True) or has said why it cannot."""
        assert self.status_fd is not None
        self._problem = os.read(self.status_fd, child.MAX_STATUS_BYTES).decode(errors="replace")
        os.close(self.status_fd)
        self.status_fd = None
        return not self._problem

    # -- time ------------------------------------------------------------------------------------

    def wait_ms(self) -> float | None:
        """How long there is nothing to do but to wait for the job."""
        at = min(self._timeout_at, self._step_at)
        return None if at == NEVER else max(0.0, (at - time.monotonic()) * 1000)

    def on_time(self) -> None:
        """Do what is due."""
        if self._timeout_at == self._step_at == NEVER:
            return
        now = time.monotonic()
        if now >= self._timeout_at:
            self._timeout_at = NEVER
            self._decide("timeout")
            self._stop()
        if now >= self._step_at:
            self._step()

    # -- being ended -----------------------------------------------------------------------------

    def halt(self, how: str) -> None:
        """Someone asks: `stop`, `kill` or `wind_down`. The first reason to end it is the one that counts."""
        if how == "wind_down":
            self._decide("exited")
            if not self._halting and self._step_at == NEVER:
                self._then(self._stop, self.order["stop_timeout_s"])
            return
        self._decide("stopped")
        if how == "kill":
            self._kill()
        else:
            self._stop()

    def _decide(self, cause: str) -> None:
        self._cause = self._cause or cause

    def _then(self, step: Callable[[], None], after_s: float) -> None:
        self._step = step
        self._step_at = time.monotonic() + after_s

    def _stop(self) -> None:
        """Ask politely, once; force follows."""
        if self._halting:
            return
        self._halting = True
        if self.order["stop_signal"] == signal.SIGKILL:
            self._kill()
            return
        process_tree.signal_descendants(os.getpid(), (self.order["stop_signal"], signal.SIGCONT))
        self._then(self._kill, self.order["stop_timeout_s"])

    def _kill(self) -> None:
        """Kill all there is, and look again: a process may have been born behind the walk's back."""
        self._halting = self._killing = True
        process_tree.signal_descendants(os.getpid(), (signal.SIGKILL,))
        self._then(self._kill, self._rewalk_s)
        self._rewalk_s = min(self._rewalk_s * 2, LONGEST_REWALK_S)

    # -- the end ---------------------------------------------------------------------------------

    def reap(self) -> None:
        """Take every child that has ended. When there is none at all any more, the attempt has ended."""
        while True:
            try:
                pid, status, usage = os.wait3(os.WNOHANG)
            except ChildProcessError:
                self.has_ended = True
                return
            if pid == 0:
                break
            self._cpu_s += usage.ru_utime + usage.ru_stime
            # The kernel counts from before exec: less than a shim has (some 10 MB) cannot be told.
            self._max_rss_bytes = max(self._max_rss_bytes, usage.ru_maxrss * 1024)
            if pid == self.pid:
                self._main_status = status
                if self.order["finish"] == "main":
                    self._decide("exited")
        if self._killing:
            self._kill()
        elif self._main_status is not None and self.order["finish"] == "main":
            self._stop()

    def end(self) -> dict[str, Any]:
        """Write the ending into the record and return it: the fields of events.Ending."""
        if self.status_fd is not None:
            self.loaded()
        self._close_output()
        cause = "unstartable" if self._problem else self._cause or "exited"
        ending = {
            "cause": cause,
            "started_at": self._record["started_at"],
            "finished_at": time.time(),
            "duration_s": time.monotonic() - self._began_at,
            "cpu_s": self._cpu_s,
            "max_rss_bytes": self._max_rss_bytes or None,
            "log_dropped_bytes": self.capture.dropped_bytes,
        }
        if self._problem:
            ending["text"] = f"could not start: {self._problem}"[:MAX_TEXT_CHARS]
        elif self._main_status is not None:
            code = os.waitstatus_to_exitcode(self._main_status)
            ending["exit_code" if code >= 0 else "signal"] = abs(code)
        self._record["ending"] = ending
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
        self.capture.fifo.close(reuse=not self.order["user"])  # else that user owns it

    def _save(self, content: dict[str, Any]) -> None:
        try:
            self._slot.rewrite(content)
        except OSError:
            pass  # jobd is told as well; only should it die before it listens, this is lost


class Shim:
    """The loop of the process. `channel` is its end of the executor's socket, blocking.

    It inherits handlers for the signals that it knows; their numbers arrive in a pipe of its own.
    """

    def __init__(self, channel: int, places: Places, stage: child.Stage) -> None:
        self._channel = channel
        self._places = places
        self._stage = stage
        self._mounts = Mounts()
        pid, start = self._identity = process_tree.myself()
        self._fifo = Fifo(f"{places.fifos}/{pid}-{start}")
        self._slot = Slot(f"{places.attempts}/{pid}-{start}")
        self._attempt: Attempt | None = None
        self._has_master = True
        self._wakeup_fd, wakeup_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup_w, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._poll.register(self._wakeup_fd, select.POLLIN)

    def run(self) -> None:
        """Until jobd has gone and nothing is under way."""
        while self._has_master or self._attempt:
            attempt = self._attempt
            for fd, _ in self._poll.poll(attempt.wait_ms() if attempt else None):
                if fd == self._channel:
                    self._hear()
                elif fd == self._wakeup_fd:
                    self._on_signals()
                elif attempt and fd == attempt.status_fd:
                    self._on_status(attempt)
                elif attempt:
                    attempt.capture.transfer()
            if attempt:
                attempt.on_time()
                if attempt.has_ended:
                    self._end(attempt)
        self._fifo.remove()
        self._slot.close()

    # -- the executor ------------------------------------------------------------------------------

    def _hear(self) -> None:
        try:
            text = os.read(self._channel, MAX_MESSAGE_BYTES)
        except ConnectionResetError:
            text = b""
        if not text:
            self._poll.unregister(self._channel)
            self._has_master = False
            return
        message = json.loads(text)
        if "start" in message:
            self._begin(message["start"])
        elif self._attempt and self._attempt.id == message["halt"]:
            self._attempt.halt(message["how"])

    def _say(self, what: str, attempt: int, **fields: Any) -> None:
        try:
            os.write(self._channel, _encode({"what": what, "attempt": attempt, **fields}))
        except (BrokenPipeError, ConnectionResetError):
            pass  # jobd has gone; the record will tell the next one

    # -- one attempt -------------------------------------------------------------------------------

    def _begin(self, order: Order) -> None:
        """The record first, then the FIFO and the log, then the process."""
        number = order["attempt"]
        self._received()  # what came before was not meant for this attempt
        try:
            attempt = self._prepare(order)
        except OSError as error:
            self._say("not_started", number, reason=f"the state directory cannot be written: {error}")
            return
        if attempt is None:
            self._say("not_started", number, reason="it was given up before its shim could begin")
            return
        try:
            attempt.start(self._stage, child.needs_fork(order) or self._mounts.any_remote())
        except UnstartableError as error:
            self._say("ended", number, ending=attempt.unstartable(str(error)))
        except child.ShortageError as error:
            attempt.give_up(str(error))
            self._say("not_started", number, reason=str(error))
        else:
            self._attempt = attempt
            self._poll.register(self._fifo.read_fd, select.POLLIN)
            if attempt.status_fd is None:
                self._say("started", number, pid=attempt.pid, at=time.time())
            else:
                self._poll.register(attempt.status_fd, select.POLLIN)

    def _prepare(self, order: Order) -> Attempt | None:
        """None if the attempt may not be started any more. OSError: nothing could be written."""
        number, places = order["attempt"], self._places
        kept: dict[str, Any] = {
            "attempt": number,
            "shim": self._identity[0],
            "shim_start": self._identity[1],
            "boot": places.boot,
            "fifo": os.path.basename(self._fifo.path),
            "log": order["log"],
            "started_at": time.time(),
            "pid": None,
            "ending": None,
        }
        path = f"{places.attempts}/{number}.json"
        if not self._slot.take(path, kept):
            return None
        if self._left_alone():
            remove(path)
            return None
        try:
            self._fifo.open()
        except OSError as error:
            self._slot.rewrite({"given_up": str(error)})
            raise
        capture = Capture(self._fifo, f"{places.logs}/{order['log']}", order["log_max_bytes"])
        return Attempt(order, self._slot, kept, capture)

    def _left_alone(self) -> bool:
        """True if jobd has gone. Asked after the record was made: the next jobd gives an attempt up by taking
        that name, and may free it again later; by then this is true."""
        return any(fd == self._channel and events & select.POLLHUP for fd, events in self._poll.poll(0))

    def _on_status(self, attempt: Attempt) -> None:
        assert attempt.status_fd is not None
        self._poll.unregister(attempt.status_fd)
        if attempt.loaded():
            self._say("started", attempt.id, pid=attempt.pid, at=time.time())

    def _on_signals(self) -> None:
        received = self._received()
        if not self._attempt:
            return
        for signum in received:
            if how := HALT_OF_SIGNAL.get(signum):
                self._attempt.halt(how)
        if signal.SIGCHLD in received:
            self._attempt.reap()

    def _received(self) -> set[int]:
        """Numbers of the signals since last asked."""
        try:
            return set(os.read(self._wakeup_fd, 4096))
        except BlockingIOError:
            return set()

    def _end(self, attempt: Attempt) -> None:
        if attempt.status_fd is not None:
            self._poll.unregister(attempt.status_fd)
        self._poll.unregister(self._fifo.read_fd)
        ending = attempt.end()
        self._attempt = None
        self._say("ended", attempt.id, ending=ending)


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()
