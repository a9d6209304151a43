"""Who may call what: the role of a caller, refusals, and what the journal is told of them.

Owns the groups of each role as they were last configured, and how many refusals were told. Each method's
role stands in `supervisor.api`. Looks up no name of a caller: the answer may come from a network. Called by
the desk for every request, and by the daemon when the configuration changes.
"""

from __future__ import annotations

import logging
import os
import pwd
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from supervisor import api, config, protocol
from supervisor.api import Role
from supervisor.control import Peer
from supervisor.core.commands import Report
from supervisor.core.engine import Engine
from supervisor.core.events import Refusal, Refused
from supervisor.core.names import resolve
from supervisor.core.plan import RefusedError

log = logging.getLogger("jobd")

#: The journal is told of refusals of one method to one user once in this time; further ones are counted.
REFUSAL_TOLD_EVERY_S = 60.0
#: Refusals that the journal is told of in that time, whoever they are of: a user may have many numbers.
MAX_REFUSALS_TOLD = 30
#: Characters of what was asked for, in the journal.
MAX_ASKED_CHARS = 200


class Access:
    """Judges requests. `bring_in`: have an older run in memory."""

    def __init__(self, engine: Engine, bring_in: Callable[[str], None]) -> None:
        self._engine = engine
        self._bring_in = bring_in
        self._always_admin = {0, os.geteuid()}
        self._groups: config.Access | None = None
        self._gids: dict[Role, frozenset[int]] = {}
        self._uids: dict[str, int] = {}  # of the users that jobs run as

    def configure(self, groups: config.Access | None, users: Iterable[str]) -> None:
        """Take what the configuration says, from the next request on. `users`: those that jobs run as."""
        if groups is None and self._groups is not None:
            # The socket is open to everyone, and strangers may be connected: they must not become admins.
            log.warning("[access] is gone: until jobd is started again, only root and its own user may do anything")
            groups = config.Access()
        self._groups = groups
        if groups is not None:
            self._gids = {role: frozenset(group.gid for group in groups_of(groups, role)) for role in Role}
        self._uids.update(_numbers(users))  # older runs may go on with users that the configuration no longer has

    @property
    def has_roles(self) -> bool:
        return self._groups is not None

    def allows(self, peer: Peer, method: str) -> bool:
        """Whether the caller has the role that the method needs."""
        if self._groups is None or peer.uid in self._always_admin:
            return True
        return not peer.groups.isdisjoint(self._gids[api.METHODS[method].role])

    def is_stranger(self, peer: Peer) -> bool:
        """Whether the caller may do nothing at all."""
        return not self.allows(peer, "ping") and peer.uid not in self._uids.values()

    def as_own_report(self, peer: Peer, asked: object) -> Report | None:
        """The report of someone without a role, if it is on a job that runs as his user; about that very run."""
        if not isinstance(asked, Report) or peer.uid not in self._uids.values():
            return None
        if asked.run is not None:
            self._bring_in(asked.run)
        try:
            [target] = resolve(self._engine, (asked.job,), asked.run)
        except RefusedError:
            return None  # he is not told which jobs there are
        live = target.run.nodes.get(asked.job) if target.run else None
        if live is None or live.job.user is None or self._uids.get(live.job.user) != peer.uid:
            self._engine.forget_finished()  # what was brought in
            return None
        return replace(asked, run=live.run.run.name)

    def refusal(self, peer: Peer, method: str) -> Refusal:
        role = api.METHODS[method].role
        message = f"{method} needs the role {role}, which uid {peer.uid} does not have"
        names = dict.fromkeys(group.name for group in groups_of(self._groups or config.Access(), role))
        may = f"ask someone of the groups {', '.join(names)}" if names else "only root and jobd's own user may"
        also = "; a job's own user may report on that job" if method == "report" else ""
        return Refusal(protocol.NOT_PERMITTED, "not_permitted", message, may + also)


def groups_of(groups: config.Access, role: Role) -> tuple[config.Group, ...]:
    """The groups that have a role: its own, and those of the roles above."""
    by_role = {Role.VIEW: groups.view, Role.OPERATE: groups.operate, Role.ADMIN: groups.admin}
    return tuple(group for each, its_groups in by_role.items() if each >= role for group in its_groups)


def _numbers(users: Iterable[str]) -> dict[str, int]:
    found = {}
    for user in set(users):
        try:
            found[user] = pwd.getpwnam(user).pw_uid
        except KeyError:
            pass  # the configuration's check has said so
    return found


class Refusals:
    """What the journal is told: each refusal, but no more than it can bear. All times are monotonic seconds."""

    def __init__(self) -> None:
        self._told: dict[tuple[int, str], int] = {}  # in the present period: uid and method -> further ones
        self._untold: dict[tuple[int, str], int] = {}  # further ones of the period before
        self._others = 0  # those that were told in no entry at all
        self._period_began_at = float("-inf")

    def entry(self, peer: Peer, method: str, asked: object, now: float) -> Refused | None:
        """What to write down of this refusal; None if it is only counted."""
        if now >= self._period_began_at + REFUSAL_TOLD_EVERY_S:
            self._begin_period(now)
        key = (peer.uid, method)
        if key in self._told:
            self._told[key] += 1
            return None
        if len(self._told) >= MAX_REFUSALS_TOLD:
            self._others += 1
            return None
        self._told[key] = 0
        text = f"{_words(method, asked)}: needs the role {api.METHODS[method].role}"
        if further := self._untold.pop(key, 0):
            text += f"; {further} more like this since the last entry"
        if self._others:
            text += f"; {self._others} refusals of any kind were not written down"
            self._others = 0
        return Refused(text, f"uid {peer.uid}")

    def _begin_period(self, now: float) -> None:
        """What was counted and is not told in this period either counts among the others from the next on."""
        self._others += sum(self._untold.values())
        self._untold = {key: further for key, further in self._told.items() if further}
        self._told = {}
        self._period_began_at = now


def _words(method: str, asked: Any) -> str:
    """The request as someone would type it, as far as that says what it was about."""
    names = getattr(asked, "names", None) or filter(None, [getattr(asked, "job", None)])
    words = "".join(char if char.isprintable() else "?" for char in " ".join([method, *names]))
    return words if len(words) <= MAX_ASKED_CHARS else words[: MAX_ASKED_CHARS - 1] + "…"
