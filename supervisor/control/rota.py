"""Whose line is looked at next: everyone in rotation, and only a few lines in one turn of the loop.

So a client that sends as fast as it can, or a crowd of them, holds up neither other clients nor jobs for long.
Knows nothing of lines. Made by `server`, used by `connection`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from supervisor.loop import Loop

#: Lines of all connections together that are looked at in one turn of the loop.
MAX_LINES_PER_TURN = 16
#: Lines that are left after so long wait for the next turn.
LOOKING_S = 0.005


class Rota:
    """A queue of callbacks, each of which looks at one line."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_called = False

    def join(self, look_at_line: Callable[[], None]) -> None:
        """Call it once, when it is its turn."""
        self._waiting.append(look_at_line)
        self._call()

    def _call(self) -> None:
        if not self._is_called:
            self._is_called = True
            self._loop.call_at(0.0, self._serve)

    def _serve(self) -> None:
        """Those that wait now, as far as there is time; at least one."""
        self._is_called = False
        until = time.monotonic() + LOOKING_S
        for _ in range(min(MAX_LINES_PER_TURN, len(self._waiting))):
            self._waiting.popleft()()
            if time.monotonic() >= until:
                break
        if self._waiting:
            self._call()
