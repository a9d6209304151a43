"""A daemon as `supervisor.daemon` is one, told step by step, so that it can die between any two steps.

`Daemon.live` is one life: it yields the name of each step once that is done. Whoever holds the
generator lets it die by dropping it. What outlives it is in the `World` that it is given.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from supervisor.core.commands import Command
from supervisor.core.engine import Engine
from supervisor.core.events import (
    Booted,
    Configured,
    Decision,
    DeleteAttempt,
    Event,
    Launch,
    Leave,
    Now,
    Refusal,
    Reply,
    Requested,
    SaveAttempt,
    Signal,
    TimeReached,
)
from supervisor.core.model import ACTIVE, Definitions
from tests.core.fake_store import FakeStore
from tests.core.machine import Hands, Machine

#: All steps that a daemon may do last.
STEPS_OF_A_LIFE = {
    "restores",
    "begins to recover",
    "waits",
    "hears of an attempt",
    "settles an attempt",
    "reads its mail",
    "asks the engine",
    "cannot commit",
    "refuses a request",
    "commits",
    "orders a start",
    "sends a signal",
    "forgets a record",
    "forgets a record of nothing",
    "replies",
    "finishes its turn",
}

Answer = dict[str, Any] | Refusal
#: An event that the engine was asked about, when, and what it decided.
Asked = tuple[Event, Now, list[Decision]]


@dataclass
class Request:
    """What a client sends. A repeat bears the same `request_id`."""

    token: int
    command: Command
    request_id: str | None


class Outside(Protocol):
    """What a daemon finds in the world."""

    @property
    def now(self) -> Now: ...
    @property
    def disk_is_full(self) -> bool: ...
    def commit(self, asked: list[Asked], answers: dict[str, Answer]) -> None: ...
    def hear_answer(self, token: int, answer: Answer) -> None: ...


@dataclass
class Daemon:
    outside: Outside
    store: FakeStore
    machine: Machine
    definitions: Definitions
    mail: list[Request | Event] = field(default_factory=list)  # what nobody has read yet
    inbox: list[Event] = field(default_factory=list)
    repeatable: dict[int, str] = field(default_factory=dict)  # token -> request id
    same_request: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engine = Engine(self.definitions, self.store.has_run)
        self.hands = Hands(self.machine, self.inbox.append)

    def live(self) -> Iterator[str]:
        self.engine.restore(self.store.snapshot(), self.outside.now)
        yield "restores"
        self.hands.recover(self.engine.under_way())
        yield "begins to recover"
        self.inbox += [Configured(self.definitions), Booted()]
        while True:
            may_leave = yield from self._turn()
            if may_leave:
                return
            yield "finishes its turn"
            yield from self._look_around()

    def _look_around(self) -> Iterator[str]:
        """One turn of the loop: what is there to read."""
        while did := self.hands.look():
            yield did
        if self.mail:
            mail, self.mail = self.mail, []
            for item in mail:
                if not isinstance(item, Request):
                    self.inbox.append(item)
                elif self._is_new(item):
                    self._take_command(item)
            yield "reads its mail"
        yield "waits"

    @property
    def is_idle(self) -> bool:
        """It waits, and there is nothing for it to do, unless its deadline has come."""
        due = self.engine.deadline()
        is_due = due is not None and due <= self.outside.now.mono
        return not (is_due or self.inbox or self.mail or self.hands.heard or self.hands.unsettled)

    # ---- the turn ------------------------------------------------------------------------------

    def _turn(self) -> Generator[str, None, bool]:
        """True: it may leave."""
        asked = yield from self._ask_engine()
        decisions = [decision for _, _, decided in asked for decision in decided]
        while decisions and self.outside.disk_is_full:
            yield "cannot commit"
            yield from self._refuse_all()
        replies = [decision for decision in decisions if isinstance(decision, Reply)]
        keep = {self.repeatable[each.token]: each.result for each in replies if each.token in self.repeatable}
        if asked:
            self.outside.commit(asked, keep)
            yield "commits"
        for decision in decisions:
            name = self._perform(decision)
            if name:
                yield name
        for reply in replies:
            self._answer(reply.token, reply.result)
            yield "replies"
        self.engine.forget_finished()
        return any(isinstance(decision, Leave) for decision in decisions)

    def _ask_engine(self) -> Generator[str, None, list[Asked]]:
        now, deadline = self.outside.now, self.engine.deadline()
        if deadline is not None and deadline <= now.mono:
            self.inbox.append(TimeReached())
        events, self.inbox[:] = list(self.inbox), []
        asked = [(event, now, self.engine.handle(event, now)) for event in events]
        if asked:
            yield "asks the engine"
        return asked

    def _perform(self, decision: Decision) -> str:
        match decision:
            case Launch():
                self.hands.start(decision)
                return "orders a start"
            case Signal(attempt_id, halt):
                self.hands.signal(attempt_id, halt)
                return "sends a signal"
            case SaveAttempt(attempt) if attempt.state not in ACTIVE:
                self.hands.forget(attempt.id)
                return "forgets a record"
            case DeleteAttempt(attempt_id):
                self.hands.forget(attempt_id)
                return "forgets a record of nothing"
        return ""

    # ---- requests ------------------------------------------------------------------------------

    def _is_new(self, request: Request) -> bool:
        """Whether it was not made before; else it gets the answer to that, now or when there is one."""
        token, request_id = request.token, request.request_id
        if request_id is None:
            return True
        if request_id in self.store.answers:
            self.outside.hear_answer(token, self.store.answers[request_id])
            return False
        if request_id in self.same_request:
            self.same_request[request_id].append(token)
            return False
        self.repeatable[token] = request_id
        self.same_request[request_id] = []
        return True

    def _take_command(self, request: Request) -> None:
        run = getattr(request.command, "run", None)
        if run is not None and self.engine.registry.by_name(run) is None:
            self.engine.restore(self.store.snapshot_of(run), self.outside.now)
        self.inbox.append(Requested(request.token, request.command, "ann"))

    def _answer(self, token: int, answer: Answer) -> None:
        request_id = self.repeatable.pop(token, "")
        for each in (token, *self.same_request.pop(request_id, ())):
            self.outside.hear_answer(each, answer)

    def _refuse_all(self) -> Iterator[str]:
        """The state cannot be written: nothing is promised to anybody."""
        requests = [item for item in self.mail if isinstance(item, Request)]
        self.mail = [item for item in self.mail if not isinstance(item, Request)]
        for request in requests:
            if self._is_new(request):
                self._answer(request.token, Refusal(1, "storage", "the disk is full"))
                yield "refuses a request"
