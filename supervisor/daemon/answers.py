"""Answers to questions: what the engine and the store hold, in CONTRACT 5's shapes. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supervisor import __version__, api
from supervisor.core import queries, views
from supervisor.core.engine import Engine
from supervisor.core.events import Now, Refusal
from supervisor.core.model import ACTIVE
from supervisor.daemon.desk import Answer
from supervisor.daemon.streams import Streams
from supervisor.logs import tail
from supervisor.store import Store


class Answers:
    """Looks things up for clients. `bring_in`: have an older run in memory. `hindrance`: what ails a shim."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        streams: Streams,
        log_dir: Path,
        bring_in: Callable[[str], None],
        hindrance: Callable[[int], str | None],
    ) -> None:
        self._engine = engine
        self._store = store
        self._streams = streams
        self._log_dir = log_dir
        self._bring_in = bring_in
        self._hindrance = hindrance

    def look_up(self, token: int, query: api.Query, daemon: dict[str, Any], now: Now) -> Answer | None:
        """The answer, or None if it is a stream that has begun. `daemon`: what `status` says of it."""
        match query:
            case api.Status():
                return self._status(query, daemon, now)
            case api.History():
                return self._history(query, now)
            case api.Events():
                entries = self._store.events(query.since, query.limit)
                return {"events": [views.event_view(entry) for entry in entries]}
            case api.Ping():
                return {"pid": os.getpid(), "version": __version__}
            case api.Version():
                return {"version": __version__}
            case api.Subscribe():
                self._streams.subscribe(token, query.since)
                return None
            case api.Logs():
                return self._logs(token, query)
            case _:
                raise TypeError(f"no answer is known to {query}")

    def _status(self, query: api.Status, daemon: dict[str, Any], now: Now) -> Answer:
        if query.run is not None:
            self._bring_in(query.run)
        shown = queries.status(self._engine, query.names, query.run, now)
        self._engine.forget_finished()
        if isinstance(shown, Refusal):
            return shown
        hindered = self._hindered()
        for job in shown["jobs"] if hindered else ():
            job["reason"] = hindered.get((job["run"], job["job"]), job["reason"])
        return {"daemon": daemon, **shown}

    def _hindered(self) -> dict[tuple[str, str], str]:
        """Run and job of attempts that nobody looks after at the moment, and why."""
        under_way = self._engine.under_way().items()
        return {(launch.run, launch.job.name): why for each, launch in under_way if (why := self._hindrance(each))}

    def _history(self, query: api.History, now: Now) -> Answer:
        since = 0.0 if query.since_s is None else now.wall - query.since_s
        found = self._store.history(query.names, query.limit, since)
        if not found and (refusal := queries.refuse_unknown(self._engine, query.names)):
            return refusal
        return {"attempts": [queries.attempt_view(attempt, run, dag) for attempt, run, dag in found]}

    def _logs(self, token: int, query: api.Logs) -> Answer | None:
        found = self._store.attempt(query.job, query.run, query.attempt)
        if found is None:
            hint = f"jobctl history {query.job} lists its attempts"
            refusal = queries.refuse_unknown(self._engine, (query.job,))
            return refusal or Refusal(1, "refused", f"{query.job} has no such attempt", hint)
        attempt, run, _dag = found
        path = self._log_dir / attempt.log
        text, size = tail(path, max(0, min(query.lines, api.MAX_LOG_LINES)))
        answer: dict[str, Any] = {"job": attempt.job, "run": run, "attempt": attempt.number, "state": attempt.state}
        answer |= {"text": text, "size": size}
        if not query.follow:
            return answer
        if attempt.state in ACTIVE:  # first: once the client has the answer, the log may be removed
            self._streams.follow(token, attempt.id, path, size)
        self._streams.begin_log(token, answer)
        if attempt.state not in ACTIVE:
            self._streams.end_log(token, attempt.state)
        return None
