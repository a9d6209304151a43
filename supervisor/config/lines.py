"""Where in a TOML text each table, key and list element stands.

The TOML reader gives values without places; messages need the line. This module owns that one thought.
It reads only text that the TOML reader has accepted, so it looks for ends and never for errors, and it
knows nothing of jobs. Called by `supervisor.config.files`, and only when there is something to report.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import tomli

#: Keys and, within lists, indices from 0: ("jobs", "load", "needs", 1).
KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_SCALAR = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}'  # up to two quotes may stand before the closing three
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|[^,\[\]{}#\n\"']+",  # a number, date, true or false
    re.DOTALL,
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, on which each path of a valid TOML text is first named."""
    scanner = _Scanner(text)
    scanner.scan()
    return scanner.lines


def nearest_line(lines: dict[KeyPath, int], path: KeyPath) -> int:
    """The line of `path`, else of the innermost table around it that has one, else 1."""
    for length in range(len(path), 0, -1):
        line = lines.get(path[:length])
        if line is not None:
            return line
    return 1


@dataclass(slots=True)
class _Container:
    """A list or inline table that is not closed yet. `index`: of the next element; None for a table."""

    path: KeyPath
    index: int | None


class _Scanner:
    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._text = text
        self._at = 0
        self._line = 1
        self._counted_to = 0
        self._last_index: dict[KeyPath, int] = {}  # of each array of tables

    def scan(self) -> None:
        table: KeyPath = ()
        while self._take(_BLANK) is not None and self._at < len(self._text):
            if self._next() == "[":
                table = self._header()
            else:
                path = self._keys(table)
                self._step("=")
                self._value(path)

    def _header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`. A name on the way that is an array of tables means its last element."""
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        path: KeyPath = ()
        while self._next() != "]":
            if path:
                self._step(".")
                path = self._into_last(path)
            path = self._key(path)
        self._at += 2 if is_array else 1
        if is_array:
            self._last_index[path] = self._last_index.get(path, -1) + 1
        path = self._into_last(path)
        self._mark(path)
        return path

    def _into_last(self, path: KeyPath) -> KeyPath:
        return (*path, self._last_index[path]) if path in self._last_index else path

    def _keys(self, path: KeyPath) -> KeyPath:
        """A key, dotted or not, before its `=`."""
        path = self._key(path)
        while self._next() == ".":
            self._step(".")
            path = self._key(path)
        return path

    def _key(self, path: KeyPath) -> KeyPath:
        """One part of a key, with the space around it."""
        self._take(_SPACE)
        key = self._take(_KEY)
        if key[0] == '"' and "\\" in key:
            key = tomli.loads(f"key = {key}")["key"]
        elif key[0] in "\"'":
            key = key[1:-1]
        path = (*path, key)
        self._mark(path)
        self._take(_SPACE)
        return path

    def _value(self, path: KeyPath) -> None:
        """One value with all that is in it. A stack instead of recursion: values may be nested deeply."""
        containers: list[_Container] = []
        while True:
            self._take(_BLANK)
            opener = self._next()
            if opener in "[{":
                self._at += 1
                containers.append(_Container(path, 0 if opener == "[" else None))
            else:
                self._take(_SCALAR)
            inner = self._next_element(containers)
            if inner is None:
                return
            path = inner

    def _next_element(self, containers: list[_Container]) -> KeyPath | None:
        """Go to the next value within the open containers, closing those that end; None: all are closed."""
        while containers:
            self._take(_BLANK)
            if self._next() in "]}":
                self._at += 1
                containers.pop()
            elif self._next() == ",":
                self._at += 1
            else:
                return self._element(containers[-1])
        return None

    def _element(self, container: _Container) -> KeyPath:
        if container.index is None:
            path = self._keys(container.path)
            self._step("=")
            return path
        path = (*container.path, container.index)
        container.index += 1
        self._mark(path)
        return path

    def _next(self) -> str:
        return self._text[self._at]

    def _step(self, mark: str) -> None:
        assert self._next() == mark, f"expected {mark} at offset {self._at}"
        self._at += 1

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match is not None, f"cannot read TOML at offset {self._at}"
        self._at = match.end()
        return match.group()

    def _mark(self, path: KeyPath) -> None:
        """Note the line of a path that is new."""
        if path not in self.lines:
            self._line += self._text.count("\n", self._counted_to, self._at)
            self._counted_to = self._at
            self.lines[path] = self._line
