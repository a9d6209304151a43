"""The process around one attempt: starts it, captures its output, stops it, sees its end, records it.

Here is the loop: who speaks to it, and what it says. What it does with an attempt is in `attempt`.

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
from supervisor.attempt import Attempt, OwnAttempt
from supervisor.capture import Capture, Fifo
from supervisor.mounts import Mounts
from supervisor.order import HALT_SIGNALS, MAX_MESSAGE_BYTES, TERMS, UnstartableError
from supervisor.record import Slot, remove
from supervisor.takeover import TakenOver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from supervisor.order import Order

HALT_OF_SIGNAL = {int(signum): how for how, signum in HALT_SIGNALS.items()}


class Places:
    """The folders of the state directory that a shim writes to, this boot's name, and who makes the shims.

    Made by the forkserver: a shim's parent may be another one by the time that it looks.
    """

    __slots__ = ("attempts", "boot", "fifos", "forkserver", "logs")

    def __init__(self, state_dir: str) -> None:
        self.attempts = os.path.join(state_dir, "attempts")
        self.fifos = os.path.join(state_dir, "fifos")
        self.logs = os.path.join(state_dir, "logs")
        self.boot = process_tree.boot_id()
        self.forkserver = process_tree.myself()


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
            for fd, _ in self._poll.poll(self._attempt.wait_ms() if self._attempt else None):
                if fd == self._channel:
                    self._hear()
                elif fd == self._wakeup_fd:
                    self._on_signals()
                elif self._attempt and fd == self._attempt.event_fd:
                    self._on_event(self._attempt)
                elif self._attempt:
                    self._attempt.capture.transfer()
            if self._attempt:  # it may have begun just now, and even have ended
                self._attempt.on_time()
                if self._attempt.has_ended:
                    self._end(self._attempt)
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
        elif "take_over" in message:
            self._take_over(message["take_over"])
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
            self._follow(attempt)
            if attempt.is_loaded:
                self._say("started", number, pid=attempt.pid, at=time.time())

    def _follow(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._poll.register(attempt.capture.fifo.read_fd, select.POLLIN)
        if attempt.event_fd is not None:
            self._poll.register(attempt.event_fd, select.POLLIN)

    def _prepare(self, order: Order) -> OwnAttempt | None:
        """None if the attempt may not be started any more. OSError: nothing could be written."""
        number, places = order["attempt"], self._places
        kept: dict[str, Any] = {
            "attempt": number,
            "shim": self._identity[0],
            "shim_start": self._identity[1],
            "forkserver": places.forkserver,
            "boot": places.boot,
            "fifo": os.path.basename(self._fifo.path),
            "log": order["log"],
            "started_at": time.time(),
            "began_at": time.monotonic(),
            "terms": {name: order[name] for name in TERMS},  # type: ignore[literal-required]
            "env": order["own_env"],
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
        return OwnAttempt(order, self._slot, kept, capture)

    def _take_over(self, number: int) -> None:
        """Follow the attempt of a shim that was killed."""
        places = self._places
        kept = self._slot.take_over(f"{places.attempts}/{number}.json")
        if kept is None:
            self._say("not_taken", number)
            return
        fifo = Fifo(f"{places.fifos}/{kept['fifo']}")
        try:
            fifo.reopen()
            old_name = f"{kept['shim']}-{kept['shim_start']}"
            kept.setdefault("not_before", kept["shim_start"])
            kept["shim"], kept["shim_start"] = self._identity
            self._slot.rewrite(kept)
        except OSError:
            fifo.let_go()
            self._slot.close()
            self._say("not_taken", number)
            return
        try:
            remove(f"{places.attempts}/{old_name}")  # not before we have the FIFO: the forkserver may leave now
        except OSError:
            pass  # swept up later
        capture = Capture(fifo, f"{places.logs}/{kept['log']}", kept["terms"]["log_max_bytes"])
        attempt = TakenOver(kept, self._slot, capture, places.attempts)
        self._say("taken", number, pid=attempt.pid, at=kept["started_at"])
        self._follow(attempt)
        attempt.on_event()

    def _left_alone(self) -> bool:
        """True if jobd has gone. Asked after the record was made: the next jobd gives an attempt up by taking
        that name, and may free it again later; by then this is true."""
        return any(fd == self._channel and events & select.POLLHUP for fd, events in self._poll.poll(0))

    def _on_event(self, attempt: Attempt) -> None:
        fd = attempt.event_fd
        if attempt.on_event() or fd is None:
            return
        self._poll.unregister(fd)
        if isinstance(attempt, OwnAttempt) and attempt.is_loaded:
            self._say("started", attempt.id, pid=attempt.pid, at=time.time())

    def _on_signals(self) -> None:
        received = self._received()
        if not self._attempt:
            return
        for signum in received:
            if how := HALT_OF_SIGNAL.get(signum):
                self._attempt.halt(how)
        if signal.SIGCHLD in received:
            self._attempt.on_child()

    def _received(self) -> set[int]:
        """Numbers of the signals since last asked."""
        try:
            return set(os.read(self._wakeup_fd, 4096))
        except BlockingIOError:
            return set()

    def _end(self, attempt: Attempt) -> None:
        if attempt.event_fd is not None:
            self._poll.unregister(attempt.event_fd)
        self._poll.unregister(attempt.capture.fifo.read_fd)
        self._attempt = None
        if attempt.event_fd is not None and isinstance(attempt, OwnAttempt):
            attempt.on_event()
        if isinstance(attempt, OwnAttempt) and attempt.shortage:
            attempt.give_up(attempt.shortage)
            self._say("not_started", attempt.id, reason=attempt.shortage)
        else:
            self._say("ended", attempt.id, ending=attempt.end())


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode(errors="replace")
