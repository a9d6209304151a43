"""Answers that go on: subscribers to the journal, followers of logs."""

from __future__ import annotations

from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

from supervisor.control import Control
from supervisor.core import views
from supervisor.core.model import JournalEntry
from supervisor.logs import LogFollowers
from supervisor.loop import Loop
from supervisor.store import Store

#: Journal entries sent in one turn to one of the subscribers who begin in the past.
BACKLOG_STEP = 50


class Streams:
    """Who hears what as it comes, by the token of the request that asked for it."""

    def __init__(self, control: Control, store: Store, loop: Loop, last_event_id: int) -> None:
        self._control = control
        self._store = store
        self._loop = loop
        self._last_event_id = last_event_id  # the last one that is committed
        self._subscribers: dict[int, int] = {}  # token -> id of the last entry sent
        self._behind: deque[int] = deque()  # those of them that have not seen all that is committed
        self._followers = LogFollowers(loop)
        self._following: dict[int, int] = {}  # token -> id of an attempt that has not ended

    def gone(self, token: int) -> None:
        """Nobody hears this stream any more."""
        self._subscribers.pop(token, None)
        self._following.pop(token, None)
        self._followers.drop(token)

    # ---- the journal ---------------------------------------------------------------------------

    def subscribe(self, token: int, since: int | None) -> None:
        """Send every entry above `since` (None: from now on) as an `event`, now and as they come."""
        since = self._last_event_id if since is None else min(since, self._last_event_id)
        self._control.reply(token, {"since": since}, more=True)
        self._subscribers[token] = since
        if since < self._last_event_id:
            self._behind.append(token)
            self._loop.call_at(0.0, self._catch_up)

    def publish(self, entries: list[JournalEntry]) -> None:
        """These entries, without a gap, have been committed."""
        self._last_event_id = entries[-1].id
        for token, sent in list(self._subscribers.items()):
            if sent == entries[0].id - 1:
                self._send(token, entries)

    def _catch_up(self) -> None:
        """One step of one subscriber, then the next one's: others have to be served too."""
        token = self._behind.popleft()
        sent = self._subscribers.get(token)
        if sent is not None:
            self._send(token, self._store.events(sent, BACKLOG_STEP))
            if self._subscribers.get(token, self._last_event_id) < self._last_event_id:
                self._behind.append(token)
                self._loop.call_at(0.0, self._catch_up)

    def _send(self, token: int, entries: list[JournalEntry]) -> None:
        for entry in entries:
            if token in self._subscribers:  # it may be gone, or lagged
                self._subscribers[token] = entry.id
                self._control.notify(token, "event", views.event_view(entry))

    # ---- logs ----------------------------------------------------------------------------------

    def follow(self, token: int, attempt_id: int, path: Path, offset: int) -> None:
        """Send what stands in the log behind `offset` as `log`, from the next turn on, until the attempt has ended."""
        self._following[token] = attempt_id
        send = partial(self._send_log, token)
        has_room = partial(self._control.has_room, token, partial(self._followers.go_on, token))
        self._followers.follow(token, path, offset, send, has_room)

    def attempt_ended(self, attempt_id: int, state: str) -> None:
        """Its log is whole: its followers are to get the rest, and then to be told that it is."""
        for token in [token for token, followed in self._following.items() if followed == attempt_id]:
            del self._following[token]
            self._followers.finish(token, partial(self.end_log, token, state))

    def begin_log(self, token: int, answer: dict[str, Any]) -> None:
        """The first answer to someone who follows a log; what is followed already comes on a later turn."""
        self._control.reply(token, answer, more=True)
        if not self._control.is_open(token):  # it was refused
            self.gone(token)

    def _send_log(self, token: int, text: str) -> None:
        self._control.notify(token, "log", {"text": text})

    def end_log(self, token: int, state: str) -> None:
        self._control.notify(token, "log_end", {"state": state})
        self._control.end(token)
