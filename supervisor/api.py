"""The methods of the socket: what each takes and who may call it, and its params as a typed value.

Knows names and shapes, not what is done with them. Called by the daemon.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, NamedTuple

import msgspec

from supervisor import protocol
from supervisor.core import commands

#: Lines that `logs` hands out at most, and by default.
MAX_LOG_LINES, LOG_LINES = 100_000, 1_000
#: Rows of `history` and `events` by default.
ROWS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    names: tuple[str, ...] = ()
    run: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    names: tuple[str, ...] = ()
    limit: int = ROWS
    since_s: float | None = None  # not older than this many seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    since: int = 0
    limit: int = ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    since: int | None = None  # None: from now on


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    job: str
    run: str | None = None
    attempt: int | None = None
    lines: int = LOG_LINES
    follow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    pass


Query = Status | History | Events | Subscribe | Logs | Reload | Ping | Version


class Role(IntEnum):
    """What a caller may do. Each includes those before it."""

    VIEW = 1
    OPERATE = 2
    ADMIN = 3

    def __str__(self) -> str:
        return self.name.lower()


class Method(NamedTuple):
    """One method: the role that it needs, and the shape of its params."""

    role: Role
    shape: type[Any]


_BY_ROLE: dict[Role, tuple[type[Any], ...]] = {
    Role.VIEW: (commands.Wait, Status, History, Events, Subscribe, Logs, Ping, Version),
    Role.OPERATE: (
        *(commands.Start, commands.Stop, commands.Retry, commands.Restart, commands.Hold, commands.Release),
        *(commands.Skip, commands.Mark, commands.Report),
    ),
    Role.ADMIN: (Reload, commands.Shutdown),
}
METHODS = {shape.__name__.lower(): Method(role, shape) for role, shapes in _BY_ROLE.items() for shape in shapes}
#: Options whose long form names no unit.
_WITH_UNIT = {"timeout": "timeout_s"}
#: The largest number that the database holds, and the longest time that anyone waits (a hundred years).
MAX_NUMBER, MAX_TIME_S = 2**63 - 1, 100 * 365 * 86_400.0
#: Names in one request: the database takes no more at once.
MAX_NAMES = 10_000
#: Characters of a reason or message.
MAX_TEXT_CHARS = 4_000


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


#: What values a parameter may have, beyond its type, wherever it appears.
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "names": (lambda value: len(value) <= MAX_NAMES, f"at most {MAX_NAMES} names"),
    "limit": (lambda value: 1 <= value <= MAX_NUMBER, "a number from 1"),
    "since": (lambda value: 0 <= value <= MAX_NUMBER, "the id of an event, or 0"),
    "attempt": (lambda value: 1 <= value <= MAX_NUMBER, "a number from 1"),
    "data": (lambda value: 0 <= value <= MAX_NUMBER, f"a number from 0 to {MAX_NUMBER}"),
    "lines": (lambda value: 0 <= value <= MAX_LOG_LINES, f"a number from 0 to {MAX_LOG_LINES}"),
    "timeout_s": (lambda value: 0 <= value <= MAX_TIME_S, "seconds, not negative"),
    "since_s": (lambda value: 0 <= value <= MAX_TIME_S, "seconds, not negative"),
    "date": (_is_date, "a date as YYYY-MM-DD"),
    "reason": (lambda value: len(value) <= MAX_TEXT_CHARS, f"at most {MAX_TEXT_CHARS} characters"),
    "message": (lambda value: len(value) <= MAX_TEXT_CHARS, f"at most {MAX_TEXT_CHARS} characters"),
}


class ParamsError(Exception):
    """A request that makes no sense: `code` is JSON-RPC's, `hint` what would."""

    def __init__(self, code: int, kind: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code, self.kind, self.message, self.hint = code, kind, message, hint


def decode(method: str, params: Mapping[str, Any]) -> commands.Command | Query:
    """The request as a typed value. Raises ParamsError."""
    known_method = METHODS.get(method)
    if known_method is None:
        near = protocol.nearest(method, METHODS)
        hint = f"did you mean {near}?" if near else f"methods: {', '.join(METHODS)}"
        raise ParamsError(-32601, "unknown_method", f"no method {protocol.echo(method)}", hint)
    shape = known_method.shape
    known = [field.name for field in fields(shape)]
    given = {_WITH_UNIT.get(name, name.replace("-", "_")): value for name, value in params.items()}
    for name in given:
        if name not in known:
            hint = f"{method} takes {', '.join(known)}" if known else f"{method} takes none"
            raise ParamsError(-32602, "wrong_params", f"{method}: unknown parameter {protocol.echo(name)}", hint)
    try:
        request: commands.Command | Query = msgspec.convert(given, shape)
    except msgspec.ValidationError as error:
        hint = f"{method} takes {', '.join(known)}"
        raise ParamsError(-32602, "wrong_params", f"{method}: {error}", hint) from None
    for name in given:
        value = getattr(request, name)
        is_allowed, allowed = _ALLOWED.get(name, (None, ""))
        if is_allowed and value is not None and not is_allowed(value):
            message = f"{method}: {name} cannot be {protocol.echo(value)}"
            raise ParamsError(-32602, "wrong_params", message, f"give {allowed}")
    return request
