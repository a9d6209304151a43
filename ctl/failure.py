"""The one way in which a jobctl command goes wrong."""

from __future__ import annotations


class Failure(Exception):  # noqa: N818  it is no error of the program
    """Ends the command: `jobctl: MESSAGE: HINT` on stderr and this exit code. `kind` is for programs."""

    def __init__(self, exit_code: int, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.kind = kind
        self.message = message
        self.hint = hint
