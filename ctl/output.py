"""Where jobctl's answers go: who reads stdout, and what that reader can take.

Owns stdout. Knows nothing of jobs. A reader that leaves early (`| head`) changes nothing of what the
command does or of its exit code; it only is not written to any more.
"""

from __future__ import annotations

import json
import os
import select
import sys

from ctl.failure import Failure
from supervisor.protocol import EXIT_REFUSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctl.client import Client


class Output:
    """`pretty`: a person looks (a terminal, or --color always). `unicode`: it can show more than ASCII."""

    def __init__(self, *, as_json: bool = False, color: str = "auto") -> None:
        self.as_json = as_json
        self.terminal = sys.stdout.isatty()
        self.pretty = not as_json and (self.terminal or color == "always")
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        self.colored = color == "always" or (color == "auto" and self.terminal and not plain)
        self.unicode = _locale_has_unicode()
        self.reader_left = False

    @property
    def live(self) -> bool:
        """Whether lines that were written can be written over."""
        return self.pretty and self.terminal and os.environ.get("TERM", "dumb") != "dumb"

    def say(self, text: str) -> None:
        """Write a line, or some. Neither a closed pipe nor strange characters are an error."""
        self.write(text + "\n")

    def say_json(self, value: Any) -> None:
        self.say(json.dumps(value, ensure_ascii=False, separators=(",", ":")))

    def write(self, text: str) -> None:
        """Write as it is, now."""
        if self.reader_left:
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            self._reader_has_left()
        except OSError as error:
            self._reader_has_left()
            raise Failure(EXIT_REFUSED, "output", f"cannot write the answer: {error.strerror}") from None

    def wait_for(self, client: Client) -> bool:
        """Wait until there is something to read from the daemon; False: nobody reads stdout any more."""
        if self.reader_left:
            return False
        if client.has_more():
            return True
        poll = select.poll()
        poll.register(client.fileno(), select.POLLIN)
        poll.register(sys.stdout.fileno(), 0)  # errors only: a pipe without a reader
        if any(fd != client.fileno() for fd, _mask in poll.poll()):
            self._reader_has_left()
        return not self.reader_left

    def _reader_has_left(self) -> None:
        self.reader_left = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # or the interpreter would complain at its end
        os.close(nowhere)


def _locale_has_unicode() -> bool:
    """Whether the terminal shows more than ASCII, by its locale. What Python writes is no measure: UTF-8, always."""
    environ = os.environ
    lang = environ.get("LANG", "")
    character_type = environ.get("LC_CTYPE", "")
    if lang in ("", "C", "POSIX") and character_type in ("C.UTF-8", "C.utf8", "UTF-8"):
        character_type = ""  # Python sets this itself where the locale was C (PEP 538)
    locale = (environ.get("LC_ALL") or character_type or lang).lower()
    return "utf-8" in locale or "utf8" in locale
