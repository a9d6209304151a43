"""The methods of the socket: what each takes, and its params as a typed value.

Knows names and shapes, not what is done with them. Called by the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import msgspec

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

METHODS: dict[str, type[Any]] = {
    each.__name__.lower(): each
    for each in (
        *(commands.Start, commands.Stop, commands.Retry, commands.Restart, commands.Hold, commands.Release),
        *(commands.Skip, commands.Mark, commands.Report, commands.Wait, commands.Shutdown),
        *(Status, History, Events, Subscribe, Logs, Reload, Ping, Version),
    )
}
#: Options whose long form names no unit.
_WITH_UNIT = {"timeout": "timeout_s"}


class ParamsError(Exception):
    """A request that makes no sense: `code` is JSON-RPC's, `hint` what would."""

    def __init__(self, code: int, kind: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code, self.kind, self.message, self.hint = code, kind, message, hint


def decode(method: str, params: Mapping[str, Any]) -> commands.Command | Query:
    """The request as a typed value. Raises ParamsError."""
    shape = METHODS.get(method)
    if shape is None:
        near = get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"methods: {', '.join(METHODS)}"
        raise ParamsError(-32601, "unknown_method", f"no method {method!r}", hint)
    known = [field.name for field in fields(shape)]
    given = {_WITH_UNIT.get(name, name.replace("-", "_")): value for name, value in params.items()}
    for name in given:
        if name not in known:
            hint = f"{method} takes {', '.join(known)}" if known else f"{method} takes none"
            raise ParamsError(-32602, "wrong_params", f"{method}: unknown parameter {name!r}", hint)
    try:
        request: commands.Command | Query = msgspec.convert(given, shape)
    except msgspec.ValidationError as error:
        hint = f"{method} takes {', '.join(known)}"
        raise ParamsError(-32602, "wrong_params", f"{method}: {error}", hint) from None
    return request
