"""What is to be done at a time: callbacks by monotonic time, nearest first. The engine runs those that are due."""

from __future__ import annotations

import heapq
from collections.abc import Callable

#: Cancelled timers may fill half of the heap, and this many more, before they are swept out.
MAX_CANCELLED = 64


class Timer:
    """A callback that is due at `when`, monotonic seconds; None once it was cancelled."""

    __slots__ = ("callback", "order", "when")

    def __init__(self, when: float, order: int, callback: Callable[[], object]) -> None:
        self.when = when
        self.order = order
        self.callback: Callable[[], object] | None = callback

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self.order) < (other.when, other.order)


class Timers:
    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._count = 0
        self._cancelled = 0

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        self._count += 1
        timer = Timer(when, self._count, callback)
        heapq.heappush(self._heap, timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        """It is not called any more. Harmless after it was called."""
        if timer.callback is None:
            return
        timer.callback = None
        self._cancelled += 1
        if self._cancelled > len(self._heap) // 2 + MAX_CANCELLED:
            self._heap = [each for each in self._heap if each.callback]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def run_due(self, mono: float) -> None:
        while self._heap and self._heap[0].when <= mono:
            timer = heapq.heappop(self._heap)
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._cancelled -= 1
            else:
                callback()

    def deadline(self) -> float | None:
        """When the next is due; None if there is none."""
        while self._heap and self._heap[0].callback is None:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0].when if self._heap else None
