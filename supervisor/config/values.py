"""How one value of the configuration is read: typed, bounded, without coercion.

A reader takes what the TOML reader gave and returns the value that the program uses, or raises BadValueError
with every reason. Readers know no key, file or other value. Called through `supervisor.config.keys`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from difflib import get_close_matches
from typing import Annotated, Any

import msgspec
from msgspec import Meta

MAX_SIZE_BYTES = 2**50
MAX_PATH_BYTES = 4096
MAX_SHOWN_CHARS = 60
MAX_NAME_CHARS = 64

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = 'a name has letters, digits, ".", "_" and "-", at most 64, and begins with a letter or digit'

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@\\-]{0,63}\$?")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?) ?([A-Za-z]{1,3})")
_SIZE_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: bool comes before the numbers, because it is one for Python.
_KINDS: tuple[tuple[Any, str], ...] = (
    (str, "text"),
    (bool, "true or false"),
    ((int, float), "a number"),
    (dict, "a table"),
    (list, "a list"),
    ((datetime, date), "a date"),
    (time, "a time"),
)

Reader = Callable[[Any], Any]


#: Stands for a value that could not be read; its errors were told.
WRONG: Any = object()


class BadValueError(ValueError):
    """Why a value cannot be used, in one or more reasons. `readable`: the good part of it, to be checked further."""

    def __init__(self, *reasons: str, readable: Any = WRONG) -> None:
        super().__init__(*reasons)
        self.reasons = reasons
        self.readable = readable


# ---- how a value is shown --------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A found value for a message, short and without control characters."""
    if isinstance(value, str):
        cut = value if len(value) <= MAX_SHOWN_CHARS else value[: MAX_SHOWN_CHARS - 1] + "…"
        return json.dumps(cut, ensure_ascii=not cut.isprintable())
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**18):
        return repr(value)
    return kind_of(value)


def kind_of(value: Any) -> str:
    """What sort of value it is. For what may be secret, where `shown` would tell too much."""
    if value in ([], {}):
        return "an empty list" if value == [] else "an empty table"
    return next(name for types, name in _KINDS if isinstance(value, types))


def suggestion(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean "x"?` if one of `allowed` is near, else nothing."""
    near = get_close_matches(name[:MAX_NAME_CHARS], allowed, n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


# ---- plain values ----------------------------------------------------------------------------------


def typed(kind: Any, expected: str) -> Reader:
    """Whatever msgspec accepts, strictly, as `kind`."""

    def read(value: Any) -> Any:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            raise BadValueError(f"expected {expected}, found {shown(value)}") from None

    return read


flag = typed(bool, "true or false")


def whole(low: int, high: int) -> Reader:
    return typed(Annotated[int, Meta(ge=low, le=high)], f"a whole number from {low} to {high}")


def number(low: float, high: float) -> Reader:
    return typed(Annotated[float, Meta(ge=low, le=high)], f"a number from {low:g} to {high:g}")


def text(max_chars: int, *, min_chars: int = 0) -> Reader:
    """Text for people: no control characters but newline and tab."""
    least = "text that is not empty" if min_chars else "text"
    read_text = typed(Annotated[str, Meta(min_length=min_chars)], least)

    def read(value: Any) -> str:
        found: str = read_text(value)
        if len(found) > max_chars:
            raise BadValueError(f"expected at most {max_chars} characters, found {len(found)}")
        if _CONTROL.search(found):
            raise BadValueError(f"expected text without control characters, found {shown(found)}")
        return found

    return read


def secret(max_chars: int) -> Reader:
    """Text that no message may show."""

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise BadValueError(f"expected text, found {kind_of(value)}")
        if not 0 < len(value) <= max_chars or _CONTROL.search(value):
            raise BadValueError(f"expected 1 to {max_chars} characters of text without control characters")
        return value

    return read


def matching(pattern: re.Pattern[str], expected: str) -> Reader:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise BadValueError(f"expected {expected}, found {shown(value)}")
        return value

    return read


def choice(kind: Reader, allowed: Iterable[str]) -> Reader:
    """One of `allowed`, made into what the program uses by `kind`."""
    names = tuple(allowed)

    def read(value: Any) -> Any:
        if value not in names:
            near = suggestion(value, names) if isinstance(value, str) else ""
            raise BadValueError(f"expected one of {', '.join(names)}, found {shown(value)}{near}")
        return kind(value)

    return read


def listing(item: Reader, what: str, *, most: int, least: int = 0) -> Reader:
    """A list whose elements `item` reads; wrong elements are all told."""
    expected = f"a list of {what}" if not least else f"a list of {what} that is not empty"

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) < least:
            raise BadValueError(f"expected {expected}, found {shown(value)}")
        if len(value) > most:
            raise BadValueError(f"expected at most {most} elements, found {len(value)}")
        return each(item, value)

    return read


def each(item: Reader, values: Iterable[Any]) -> tuple[Any, ...]:
    """All values through `item`; if any is wrong, all that is wrong."""
    found: list[Any] = []
    reasons: list[str] = []
    for value in values:
        try:
            found.append(item(value))
        except BadValueError as wrong:
            reasons.extend(wrong.reasons)
    if reasons:
        raise BadValueError(*dict.fromkeys(reasons))
    return tuple(found)


# ---- values with a grammar of their own ------------------------------------------------------------

name = matching(NAME, f"a name ({NAME_RULE})")
user = matching(_USER, "the name of an account")


def size(low_bytes: int = 0) -> Reader:
    """Bytes. `"10MB"` is ten million, `"1GiB"` is 2^30; or a number."""

    def read(value: Any) -> int:
        found: Any = None
        if isinstance(value, str):
            match = _SIZE.fullmatch(value)
            if match and match[2] in _SIZE_UNITS:
                found = round(float(match[1]) * _SIZE_UNITS[match[2]])
        elif isinstance(value, int) and not isinstance(value, bool):
            found = value
        if found is None:
            raise BadValueError(f'expected a size ("10MB", "1GiB" or a number of bytes), found {shown(value)}')
        if not low_bytes <= found <= MAX_SIZE_BYTES:
            most = f"{MAX_SIZE_BYTES >> 40}TiB"
            raise BadValueError(f"expected a size from {low_bytes} bytes to {most}, found {shown(value)}")
        return int(found)

    return read


def octal(value: Any) -> int:
    """Permission bits as octal text, such as a umask."""
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise BadValueError(f'expected permission bits as octal text from "000" to "777", found {shown(value)}')
    return int(value, 8)


def path(value: Any) -> str:
    """A path as it was written; who knows the folder makes it absolute."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise BadValueError(f"expected a path, found {shown(value)}")
    if len(value.encode()) > MAX_PATH_BYTES:
        raise BadValueError(f"expected a path of at most {MAX_PATH_BYTES} bytes, found {len(value.encode())}")
    return value
