"""Questions that wait to be answered: each connection in rotation, and only for a short while in one turn.

So a client that asks as fast as it can holds up neither others' questions nor jobs for long. Knows nothing of
what is asked. Made by the daemon, which adds questions as they come and has them answered at the end of each turn.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

#: Questions that are left after so long wait for the next turn: jobs come first.
ANSWERING_S = 0.005
#: Stands for a connection where the daemon itself has something to do in this place.
OWN = -1


class Questions:
    """Callbacks, each of which answers one question. In order within a connection; true while any wait."""

    def __init__(self) -> None:
        self._arrived: list[tuple[int, Callable[[], None]]] = []  # since `answer` was called
        self._waiting: OrderedDict[int, deque[Callable[[], None]]] = OrderedDict()  # by connection, whose turn it is

    def __bool__(self) -> bool:
        return bool(self._arrived or self._waiting)

    def add(self, connection: int, answer: Callable[[], None]) -> None:
        """Call it once, when it is its turn; not before the next `answer`."""
        self._arrived.append((connection, answer))

    def answer(self) -> None:
        """Those that are there now, as far as there is time; at least one."""
        until = time.monotonic() + ANSWERING_S
        for connection, answer in self._arrived:
            self._waiting.setdefault(connection, deque()).append(answer)
        self._arrived.clear()
        while self._waiting:
            connection, queue = self._waiting.popitem(last=False)
            answer = queue.popleft()
            if queue:
                self._waiting[connection] = queue
            answer()
            if time.monotonic() >= until:
                return
