"""Who waits for the end of runs and jobs, and what they are told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from supervisor.core import views
from supervisor.core.events import Now
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import ENDED, State


@dataclass(slots=True)
class _Waiter:
    token: int
    runs: list[LiveRun]
    nodes: list[LiveNode]

    def answer(self, now: Now) -> dict[str, Any]:
        runs = self.runs or list(dict.fromkeys(live.run for live in self.nodes))
        return {
            "runs": [views.run_view(live_run) for live_run in runs],
            "jobs": [views.job_view(live, now) for live in self.nodes],
        }


def has_ended(live: LiveNode) -> bool:
    """Nothing more will happen to it by itself."""
    return live.state in ENDED or live.state is State.STOPPED or not live.run.unfinished


class Waiters:
    """Open `wait` requests by token."""

    def __init__(self) -> None:
        self._by_run: dict[LiveRun, dict[int, _Waiter]] = {}
        self._by_token: dict[int, _Waiter] = {}

    def add(self, token: int, runs: list[LiveRun], nodes: list[LiveNode]) -> None:
        waiter = self._by_token[token] = _Waiter(token, runs, nodes)
        for live_run in [*runs, *(live.run for live in nodes)]:
            self._by_run.setdefault(live_run, {})[token] = waiter

    def drop(self, token: int) -> bool:
        """Nobody waits with this token any more; False if nobody did."""
        waiter = self._by_token.pop(token, None)
        if waiter is None:
            return False
        for live_run in {*waiter.runs, *(live.run for live in waiter.nodes)}:
            waiting = self._by_run.get(live_run, {})
            waiting.pop(token, None)
            if not waiting:
                self._by_run.pop(live_run, None)
        return True

    def answers(self, changed: Iterable[LiveRun], now: Now) -> Iterator[tuple[int, dict[str, Any]]]:
        """Those who wait no longer, now that these runs have changed."""
        tokens = dict.fromkeys(token for live_run in changed for token in self._by_run.get(live_run, ()))
        for token in tokens:
            answer = self.answer_if_ended(token, now)
            if answer is not None:
                yield token, answer

    def answer_if_ended(self, token: int, now: Now) -> dict[str, Any] | None:
        """The answer, if all that this one waits for has ended; it waits no longer then."""
        waiter = self._by_token[token]
        if any(live_run.unfinished for live_run in waiter.runs) or not all(map(has_ended, waiter.nodes)):
            return None
        self.drop(token)
        return waiter.answer(now)
