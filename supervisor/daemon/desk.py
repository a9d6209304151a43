"""The desk: requests of clients come in typed, answers go out; a request that is repeated gets its first answer.

Knows the socket and the shapes of requests, not what they do: commands become events for the engine,
questions wait until the turn has been committed. What a caller may not do goes no further.
"""

from __future__ import annotations

import logging
import pwd
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import msgspec

from supervisor import api, protocol
from supervisor.control import Control, Peer, Request
from supervisor.core.commands import Command, Wait
from supervisor.core.events import Refusal, Refused, Reply, Requested
from supervisor.daemon.access import Access, Refusals

log = logging.getLogger("jobd")

Answer = dict[str, Any] | Refusal

#: The token of requests that expect no answer.
NOBODY = 0


class Desk:
    """Between the control socket and the turn. The `take_…` are called on a turn of the loop."""

    def __init__(
        self,
        access: Access,
        stored_answer: Callable[[str], bytes | None],
        take_command: Callable[[Requested], None],
        take_query: Callable[[Request, api.Query, str], None],
        take_refused: Callable[[Refused], None],
    ) -> None:
        self.control: Control | None = None  # as soon as it is open
        self._access = access
        self._refusals = Refusals()
        self._stored_answer = stored_answer
        self._take_command = take_command
        self._take_query = take_query
        self._take_refused = take_refused
        self._repeatable: dict[int, str] = {}  # token -> request id, until answered
        self._same_request: dict[str, list[int]] = {}  # request id -> further tokens that want its answer

    def on_request(self, request: Request) -> None:
        """A line came in; it is refused here, answered here, or handed on."""
        try:
            asked = api.decode(request.method, request.params)
        except api.ParamsError as error:
            self.answer(request.token, Refusal(error.code, error.kind, str(error), error.hint))
            return
        if not self._access.allows(request.peer, request.method):
            own_report = self._access.as_own_report(request.peer, asked)
            if own_report is None:
                self._refuse(request.token, request.peer, request.method, asked)
                return
            asked = own_report
        by = name_of(request.peer.uid)
        if isinstance(asked, Command):
            # An id is its sender's own: nobody gets another one's answers by guessing.
            known = f"{request.peer.uid}:{request.request_id}" if request.request_id is not None else None
            # To wait changes nothing; who asks again waits again.
            known = None if getattr(asked, "dry_run", False) else known  # a rehearsal is not the thing itself
            if known is None or isinstance(asked, Wait) or not self._is_repeat(request.token, known):
                self._take_command(Requested(request.token, asked, by))
        else:
            self._take_query(request, asked, by)

    def end_what_is_not_allowed(self) -> list[int]:
        """Refuse what goes on of those who may no longer look; the tokens. What changes something was judged before."""
        ended = []
        for token, method, peer in self.control.open_requests() if self.control else ():
            if api.METHODS[method].role is api.Role.VIEW and not self._access.allows(peer, method):
                self._refuse(token, peer, method, None)
                ended.append(token)
        return ended

    def _refuse(self, token: int, peer: Peer, method: str, asked: object) -> None:
        self.answer(token, self._access.refusal(peer, method))
        if entry := self._refusals.entry(peer, method, asked, time.monotonic()):
            self._take_refused(entry)

    def answer(self, token: int, answer: Answer) -> None:
        """Send an answer to whoever asked, and to whoever asked the same again."""
        if token == NOBODY or self.control is None:
            return
        request_id = self._repeatable.pop(token, "")
        for each in (token, *self._same_request.pop(request_id, ())):
            if isinstance(answer, Refusal):
                self.control.refuse(each, answer.code, answer.kind, answer.message, answer.hint)
            else:
                self.control.reply(each, msgspec.json.encode(answer))

    def answers_to_keep(self, replies: Iterable[Reply]) -> Iterator[tuple[str, bytes]]:
        """Request ids and encoded answers that a repeat is to get, also from a later daemon."""
        for reply in replies:
            request_id = self._repeatable.get(reply.token)
            if request_id is not None:
                kind = "refusal" if isinstance(reply.result, Refusal) else "result"
                yield request_id, msgspec.json.encode({kind: reply.result})

    def _is_repeat(self, token: int, request_id: str) -> bool:
        """Whether this request was made before; then the answer to that is all it gets."""
        stored = self._stored_answer(request_id)
        if stored is not None:
            self.answer(token, _decode_answer(stored))
            return True
        if request_id in self._same_request:
            self._same_request[request_id].append(token)
            return True
        self._repeatable[token] = request_id
        self._same_request[request_id] = []
        return False

    def answer_safely(self, token: int, look_up: Callable[[], Answer | None]) -> None:
        """Answer a question. None: it has been answered already. A bug in answering need not end the daemon."""
        if self.control is None or not self.control.is_worthwhile(token):
            return
        try:
            answer = look_up()
        except Exception:
            log.exception("bug: a question could not be answered")
            answer = Refusal(protocol.INTERNAL_ERROR, "internal_error", "jobd could not answer", "its log says why")
        if answer is not None:
            self.answer(token, answer)


@lru_cache(maxsize=1024)
def name_of(uid: int) -> str:
    """A caller's name for the journal. Looked up once: the answer may come from a network."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"uid {uid}"


def _decode_answer(body: bytes) -> Answer:
    answer = msgspec.json.decode(body)
    if "refusal" in answer:
        return msgspec.convert(answer["refusal"], Refusal)
    result: dict[str, Any] = answer["result"]
    return result
