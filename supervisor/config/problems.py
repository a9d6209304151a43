"""What is wrong, and where: Problem, Place and the Report that collects them.

A place is a path of keys within one file. Its line is looked up only when a problem is told, so a
configuration without faults is never scanned for lines. Used by every module of this room.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from supervisor.config.lines import KeyPath, key_lines, nearest_line
from supervisor.config.values import suggestion

#: Further problems are counted, not told: nobody reads that many.
MAX_PROBLEMS = 10_000
#: The search for near names is slow: about 100,000 comparisons a second.
MAX_COMPARED_NAMES = 100_000
MAX_SHOWN_KEY_CHARS = 80

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning. `line`: from 1; 0 is the file as a whole. `where`: `jobs.load.retries`, may be empty."""

    file: str
    line: int
    where: str
    message: str

    def __str__(self) -> str:
        file = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (file, self.where, self.message) if part)


class Source:
    """One file that was read. `shown` is its name in messages, `folder` absolute."""

    def __init__(self, shown: str, folder: Path, text: str, tables: dict[str, Any]) -> None:
        self.shown = shown
        self.folder = folder
        self.tables = tables
        self._text = text

    @cached_property
    def _lines(self) -> dict[KeyPath, int]:
        return key_lines(self._text)

    def line_of(self, path: KeyPath) -> int:
        return nearest_line(self._lines, path)


class Place(NamedTuple):
    """A key in a file, as a path from the top of the file."""

    source: Source
    path: KeyPath = ()

    def at(self, *keys: str | int) -> Place:
        return Place(self.source, (*self.path, *keys))

    @property
    def where(self) -> str:
        """The keys as TOML writes them; indices of lists are left out."""
        return ".".join(_shown_key(key) for key in self.path if isinstance(key, str))

    def __str__(self) -> str:
        return f"{self.source.shown}:{self.source.line_of(self.path)}"


def _shown_key(key: str) -> str:
    cut = key if len(key) <= MAX_SHOWN_KEY_CHARS else key[: MAX_SHOWN_KEY_CHARS - 1] + "…"
    return cut if _BARE_KEY.fullmatch(cut) else json.dumps(cut, ensure_ascii=not cut.isprintable())


class Report:
    """Collects problems and tells them in the order of files and lines, each once."""

    def __init__(self) -> None:
        self._errors: dict[Problem, None] = {}
        self._warnings: dict[Problem, None] = {}
        self._files: dict[str, int] = {}
        self._compared_names = 0

    def add_file(self, shown: str) -> None:
        """Problems of this file come after those of the files before."""
        self._files.setdefault(shown, len(self._files))

    def file_error(self, shown: str, line: int, message: str) -> None:
        self._errors[Problem(shown, line, "", message)] = None

    def error(self, place: Place, message: str) -> None:
        self._note(self._errors, place, message)

    def warn(self, place: Place, message: str) -> None:
        self._note(self._warnings, place, message)

    @property
    def has_errors(self) -> bool:
        return bool(self._errors)

    @property
    def errors(self) -> list[Problem]:
        return self._in_order(self._errors)

    @property
    def warnings(self) -> list[Problem]:
        return self._in_order(self._warnings)

    def near(self, name: str, allowed: Collection[str]) -> str:
        """`; did you mean "x"?`, or nothing."""
        self._compared_names += len(allowed)
        return suggestion(name, allowed) if self._compared_names <= MAX_COMPARED_NAMES else ""

    def _note(self, problems: dict[Problem, None], place: Place, message: str) -> None:
        file, where = place.source.shown, place.where
        if len(problems) < MAX_PROBLEMS:
            problems[Problem(file, place.source.line_of(place.path), where, message)] = None
        else:
            problems[Problem(file, 0, "", "there is more to correct; begin with what is told before this")] = None

    def _in_order(self, problems: dict[Problem, None]) -> list[Problem]:
        return sorted(problems, key=lambda problem: (self._files.get(problem.file, 0), problem.line))
