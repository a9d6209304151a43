"""The selector loop: readable and writable descriptors, timers, signals. Knows nothing of jobs.

One turn: wait until a descriptor is ready or a timer is due, then call back. Nothing is polled:
with no timer set, `turn` sleeps until the kernel has something to say.
"""

from __future__ import annotations

import heapq
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable

Callback = Callable[[], None]

#: A turn hands out at most this many ready descriptors, so that timers are never starved.
MAX_READY_PER_TURN = 512
#: epoll takes no longer timeout than this; waking a few times a month costs nothing.
MAX_WAIT_S = 1_000_000.0


class Timer:
    """A callback at a monotonic time, seconds. `cancel` may be called at any time."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback) -> None:
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Loop:
    """Dispatches readiness, time and signals to callbacks. Single-threaded, not reentrant."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._signal_callbacks: dict[int, Callback] = {}
        self._wakeup_r, self._wakeup_w = socket.socketpair()
        for end in (self._wakeup_r, self._wakeup_w):
            end.setblocking(False)
        self.watch(self._wakeup_r.fileno(), self._drain_signals)

    def watch(self, fd: int, read: Callback | None = None, write: Callback | None = None) -> None:
        """Call `read` when `fd` is readable and `write` when it is writable; a further call replaces both."""
        interest = (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)
        if not interest:
            self.unwatch(fd)
        elif fd in self._selector.get_map():
            self._selector.modify(fd, interest, (read, write))
        else:
            self._selector.register(fd, interest, (read, write))

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; call it before the descriptor is closed. Unknown ones are no error."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def call_at(self, when: float, callback: Callback) -> Timer:
        """Call back once `time.monotonic()` has reached `when`."""
        timer = Timer(when, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def on_signal(self, signum: int, callback: Callback) -> None:
        """Call back, on a turn of the loop, after `signum` was received. Once for any number of them."""
        if not self._signal_callbacks:
            signal.set_wakeup_fd(self._wakeup_w.fileno(), warn_on_full_buffer=False)
        self._signal_callbacks[signum] = callback
        signal.signal(signum, lambda _number, _frame: None)

    def turn(self, deadline: float | None = None) -> None:
        """Wait until something is ready or due (or monotonic `deadline` has come), then call back."""
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if self._timers and (deadline is None or self._timers[0].when < deadline):
            deadline = self._timers[0].when
        wait_s = None if deadline is None else min(max(0.0, deadline - time.monotonic()), MAX_WAIT_S)
        for key, mask in self._selector.select(wait_s)[:MAX_READY_PER_TURN]:
            read, write = key.data
            # An earlier callback of this turn may have closed this descriptor, or given it to another.
            if self._selector.get_map().get(key.fd) is not key:
                continue
            if read and mask & selectors.EVENT_READ:
                read()
            if write and mask & selectors.EVENT_WRITE and self._selector.get_map().get(key.fd) is key:
                write()
        self._run_timers()

    def close(self) -> None:
        """Give the descriptors back. Signals keep their (empty) handlers."""
        if self._signal_callbacks:
            signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wakeup_r.close()
        self._wakeup_w.close()

    def _run_timers(self) -> None:
        now = time.monotonic()
        due: list[Timer] = []
        while self._timers and self._timers[0].when <= now:
            due.append(heapq.heappop(self._timers))
        for timer in due:  # what these set anew is for the next turn, lest nothing else get its turn
            if timer.callback:
                timer.callback()

    def _drain_signals(self) -> None:
        received: set[int] = set()
        while True:
            try:
                chunk = os.read(self._wakeup_r.fileno(), 4096)
            except BlockingIOError:
                break
            received.update(chunk)
        for signum in sorted(received):
            callback = self._signal_callbacks.get(signum)
            if callback:
                callback()
