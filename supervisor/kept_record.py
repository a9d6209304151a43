"""What the daemon believes of a record: others may have written it, or an older version, or a dying disk.

Part of the executor, which alone calls it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, TypedDict

import msgspec

from supervisor.core.events import Ending

Pid = Annotated[int, msgspec.Meta(gt=0, lt=2**31)]


class _GivenUp(TypedDict):
    given_up: str


class _Kept(TypedDict):
    """What is needed of a record, of this version and those before."""

    shim: Pid
    shim_start: int
    boot: str
    fifo: str
    log: str
    started_at: float
    pid: Pid | None
    ending: Ending | None


class _Terms(TypedDict):
    attempt: int
    user: str | None
    log: str
    log_max_bytes: int
    finish: str
    timeout_s: float | None
    stop_signal: int
    stop_timeout_s: float


class _Followable(_Kept):
    """What another shim needs to take the attempt over."""

    forkserver: tuple[int, int]
    began_at: float
    terms: _Terms
    env: dict[str, str]


def check(kept: dict[str, Any]) -> None:
    """ValueError if it is not what a shim writes."""
    kind = _GivenUp if "given_up" in kept else _Followable if "terms" in kept else _Kept
    try:
        msgspec.convert(kept, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    if "log" in kept and (kept["log"].startswith("/") or ".." in kept["log"].split("/")):
        raise ValueError("its log is outside of the folder of logs")


def ending(fields: dict[str, Any]) -> Ending:
    """From a shim's words; what another version may have added is left out."""
    known = msgspec.convert(fields, Ending)
    return known if known.text.isascii() else replace(known, text=storable(known.text))


def storable(text: str) -> str:
    """Without what is no Unicode (from a path or an error message of a shim), which the database does not take."""
    return text.encode(errors="replace").decode()
