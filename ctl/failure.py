"""The one way in which a jobctl command goes wrong."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Failure(Exception):  # noqa: N818  it is no error of the program
    """Ends the command: `jobctl: MESSAGE: HINT` on stderr and this exit code.

    `kind` is for programs; `answer`: what they are to get beside the error, in the same JSON document.
    """

    def __init__(
        self, exit_code: int, kind: str, message: str, hint: str = "", answer: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.kind = kind
        self.message = message
        self.hint = hint
        self.answer = answer or {}
