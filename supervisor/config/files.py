"""Which files make up a configuration: the main one and what it includes, read and parsed.

Knows the key `include` and nothing of what the files define. Called by `supervisor.config`.
"""

from __future__ import annotations

import os
import re
import stat
from glob import glob
from pathlib import Path

import tomli

from supervisor.config.problems import Place, Report, Source
from supervisor.config.values import BadValueError, listing, shown
from supervisor.config.values import path as read_path
from supervisor.trust import weakness

MAX_FILE_BYTES = 16 * 2**20
MAX_INCLUDE_PATTERNS = 100
MAX_INCLUDED_FILES = 10_000
DEFAULT_INCLUDE = ("jobs.d/*.toml",)

_read_patterns = listing(read_path, "file patterns", most=MAX_INCLUDE_PATTERNS)
_TOML_LINE = re.compile(r" \(at line ([0-9]+), column [0-9]+\)$")


class Sources:
    """The files of a configuration, the main one first. `complete`: all could be read."""

    def __init__(self, report: Report) -> None:
        self.files: dict[Path, Source] = {}  # by absolute path
        self.complete = True
        self._report = report

    def read(self, file: Path) -> Source | None:
        """Read one file; what is wrong with it goes to the report."""
        self._report.add_file(str(file))
        absolute = file.absolute()
        try:
            text = _read_text(file)
            source = Source(str(file), absolute.parent, text, _parse(text))
        except _UnreadableError as error:
            self.complete = False
            self._report.file_error(str(file), error.line, str(error))
            return None
        self.files[absolute] = source
        return source


def read_sources(main: Path, report: Report) -> Sources:
    """The main file and, in sorted order, what it includes."""
    sources = Sources(report)
    source = sources.read(main)
    if source is None:
        return sources
    for index, pattern in enumerate(_include_patterns(source, report)):
        place = Place(source).at("include", index)
        # Unlike Path.glob, glob leaves hidden files alone, and with them what editors write beside a file.
        names = sorted(glob(pattern, root_dir=source.folder, recursive=True))  # noqa: PTH207
        found = [file for file in map(main.parent.joinpath, names) if file.absolute() not in sources.files]
        if not names and "include" in source.tables:
            report.warn(place, f"no file matches {shown(pattern)}")
        if len(sources.files) + len(found) > MAX_INCLUDED_FILES:
            report.error(place, f"expected at most {MAX_INCLUDED_FILES} included files; put more jobs into each")
            break
        for file in found:
            sources.read(file)
    return sources


def _include_patterns(source: Source, report: Report) -> tuple[str, ...]:
    if "include" not in source.tables:
        return DEFAULT_INCLUDE
    try:
        patterns: tuple[str, ...] = _read_patterns(source.tables["include"])
    except BadValueError as wrong:
        for reason in wrong.reasons:
            report.error(Place(source).at("include"), reason)
        return ()
    return patterns


class _UnreadableError(Exception):
    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def _open_without_waiting(path: str, flags: int) -> int:
    """A FIFO would otherwise hold us until someone writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_text(path: Path) -> str:
    # What root runs for a file that others can write, they run as root.
    if os.geteuid() == 0 and (problem := weakness(str(path))):
        raise _UnreadableError(f"not safe to read as root: {problem}")
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _UnreadableError("cannot be read: not a regular file")
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _UnreadableError(f"cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise _UnreadableError(f"expected at most {MAX_FILE_BYTES >> 20} MiB; move jobs to included files")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _UnreadableError(f"not UTF-8: byte 0x{content[error.start]:02x}; save the file as UTF-8", line) from None


def _parse(text: str) -> dict[str, object]:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        match = _TOML_LINE.search(str(error))
        line = int(match[1]) if match else text.rstrip().count("\n") + 1
        message = str(error)[: match.start()] if match else str(error)
        raise _UnreadableError(f"not valid TOML: {message[:1].lower()}{message[1:]}", line) from None
    except (ValueError, RecursionError) as error:  # digits without end, nesting without end
        raise _UnreadableError(f"not usable TOML: {error}") from None
