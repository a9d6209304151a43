"""Someone who gives commands while jobd is under attack, and keeps count of what was acknowledged.

Each command has a request id and may be given again with the same id, to the same daemon or a later one.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ctl.client import Client
from ctl.failure import Failure
from supervisor import protocol
from tests.crash.dags import Setup

#: A daemon that does not answer within this time is taken for dead.
ANSWER_S = 20.0
#: The same if it is about to be killed.
LAST_WORDS_S = 0.5

#: Dags are to be kept busy.
_METHODS = ("start", "start", "restart", "restart", "restart", "restart", "retry", "retry", "stop", "hold", "release")

Answer = dict[str, Any]


@dataclass(slots=True)
class Order:
    """One command, under one request id. `answers`: what came back, each time it was given."""

    request_id: str
    method: str
    params: dict[str, Any]
    answers: list[Answer] = field(default_factory=list)

    @property
    def text(self) -> str:
        """As it is in the journal."""
        options = {"reason": f"--reason {self.params.get('reason')}", "now": "--now", "downstream": "--downstream"}
        return " ".join(
            [self.method, *self.params["names"], *(options[name] for name in self.params if name in options)]
        )

    @property
    def done(self) -> bool:
        """It was acknowledged, and not refused."""
        return any("refused" not in answer for answer in self.answers)

    @property
    def refused(self) -> bool:
        return any("refused" in answer for answer in self.answers)


class Call(NamedTuple):
    """An order on its way. `client` is None if nobody was there to take it."""

    order: Order
    client: Client | None
    id: int


class Operator:
    """Gives random commands. `note` tells the story."""

    def __init__(self, rng: random.Random, socket: str, setup: Setup, note: Callable[[str], None]) -> None:
        self._rng = rng
        self._socket = socket
        self._setup = setup
        self._note = note
        self.orders: list[Order] = []
        self._held: list[str] = []

    def act(self) -> None:
        """One command, or an old one once more."""
        if self.orders and self._rng.random() < 0.2:
            self.give(self._rng.choice(self.orders[-8:]))
        else:
            self.give(self.think())

    def think(self) -> Order:
        """A new order, at random."""
        rng = self._rng
        job, dag = rng.choice([*self._setup.jobs]), rng.choice([*self._setup.dags])
        method = rng.choice(_METHODS)
        params: dict[str, Any] = {"names": [dag if rng.random() < 0.6 else job]}
        if method == "stop":
            params = {"names": [job if rng.random() < 0.8 else dag]}
            if rng.random() < 0.3:
                params["now"] = True
        elif method == "retry" and rng.random() < 0.3:
            params["downstream"] = True
        elif method == "hold":
            params = {"names": [job], "reason": f"because{len(self.orders)}"}
            self._held.append(job)
        elif method == "release" and self._held:
            params = {"names": [self._held.pop(rng.randrange(len(self._held)))]}
        return self.new(method, params)

    def new(self, method: str, params: dict[str, Any]) -> Order:
        order = Order(f"order-{len(self.orders)}", method, params)
        self.orders.append(order)
        return order

    def give(self, order: Order) -> None:
        """Ask, and wait for the answer."""
        self.end(self.begin(order), ANSWER_S)

    def begin(self, order: Order) -> Call:
        """Ask only."""
        try:
            client = Client(self._socket)
        except Failure:
            return Call(order, None, 0)
        return Call(order, client, client.send(order.method, {**order.params, "request_id": order.request_id}))

    def end(self, call: Call, patience_s: float = LAST_WORDS_S) -> None:
        """See whether there is an answer."""
        order, client = call.order, call.client
        if client is None:
            self._note(f"{order.request_id}: {order.text}: not reached")
            return
        try:
            answer = client.receive(call.id, patience_s)
        except Failure as failure:
            if failure.exit_code == protocol.EXIT_UNREACHABLE:
                self._note(f"{order.request_id}: {order.text}: no answer ({failure})")
                return
            answer = {"refused": str(failure)}
        finally:
            client.close()
        order.answers.append(answer)
        told = answer.get("refused") or [f"{each['job']} {each['from']}>{each['to']}" for each in answer["changed"]]
        again = " again" if len(order.answers) > 1 else ""
        self._note(f"{order.request_id}{again}: {order.text}: {told}")

    def release_all(self) -> None:
        """So that everything can end."""
        jobs = [*self._setup.jobs]
        self.give(self.new("release", {"names": jobs}))

    def ask(self, method: str, patience_s: float = ANSWER_S, **params: Any) -> Answer:
        """A question. Raises Failure."""
        with contextlib.closing(Client(self._socket)) as client:
            return client.call(method, params, patience_s)

    def reaches(self) -> bool:
        """Whether jobd answers."""
        try:
            self.ask("ping", 5.0)
        except Failure:
            return False
        return True
