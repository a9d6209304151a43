"""Who waits for the end of runs and jobs, and what they are told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from supervisor.core import views
from supervisor.core.events import Now
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import AT_REST
from supervisor.core.timers import Timer, Timers

Answer = dict[str, Any]


@dataclass(slots=True)
class Waiter:
    """Someone who waits for runs and for single jobs. `limit`: the timer at which they give up."""

    token: int
    runs: list[LiveRun]
    nodes: list[LiveNode]
    limit: Timer | None

    @property
    def is_over(self) -> bool:
        return not any(live_run.unfinished for live_run in self.runs) and all(map(has_ended, self.nodes))

    def concerned(self) -> dict[LiveRun, None]:
        return dict.fromkeys([*self.runs, *(live.run for live in self.nodes)])

    def answer(self, now: Now) -> Answer:
        return {
            "runs": [views.run_view(live_run) for live_run in self.concerned()],
            "jobs": [views.job_view(live, now) for live in self.nodes],
        }


def has_ended(live: LiveNode) -> bool:
    """Nothing more will happen to it by itself."""
    return live.state in AT_REST or not live.run.unfinished


class Waiters:
    """Open `wait` requests by token."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._by_run: dict[LiveRun, dict[int, Waiter]] = {}
        self._by_token: dict[int, Waiter] = {}

    def add(self, waiter: Waiter, now: Now) -> Answer | None:
        """Wait for the end of all that it names; the answer, if that has come already."""
        token = waiter.token
        self._by_token[token] = waiter
        for live_run in waiter.concerned():
            self._by_run.setdefault(live_run, {})[token] = waiter
        return self._answer_if_over(waiter, now)

    def drop(self, token: int) -> bool:
        """Nobody waits with this token any more; False if nobody did."""
        waiter = self._by_token.pop(token, None)
        if waiter is None:
            return False
        if waiter.limit is not None:
            self._timers.cancel(waiter.limit)
        for live_run in waiter.concerned():
            waiting = self._by_run[live_run]
            del waiting[token]
            if not waiting:
                del self._by_run[live_run]
        return True

    def answers(self, changed: Iterable[LiveRun], now: Now) -> list[tuple[int, Answer]]:
        """Those who wait no longer, now that these runs have changed."""
        if not self._by_run:
            return []
        concerned = {token: each for live_run in changed for token, each in self._by_run.get(live_run, {}).items()}
        found = [(token, self._answer_if_over(waiter, now)) for token, waiter in concerned.items()]
        return [(token, answer) for token, answer in found if answer is not None]

    def _answer_if_over(self, waiter: Waiter, now: Now) -> Answer | None:
        if not waiter.is_over:
            return None
        self.drop(waiter.token)
        return waiter.answer(now)
