"""The words between the executor and its shims. Imported by both sides; stdlib only.

Every message is one JSON object in one packet of a SEQPACKET socket.

    executor -> shim    {"start": Order}    {"take_over": attempt}    {"halt": attempt, "how": Halt}
    shim -> executor    {"what": "hello", "pid"}, with a pidfd of the shim; once
                        {"what": "started", "attempt", "pid", "at"}
                        {"what": "ended", "attempt", "ending": {fields of Ending}}
                        {"what": "not_started", "attempt", "reason"}; the attempt is null if the shim itself
                        could not be made
                        {"what": "taken", "attempt", "pid" (or null), "at"}: it follows the attempt of a killed shim
                        {"what": "not_taken", "attempt"}: look at its record again

A closed channel tells an idle shim to go, and a busy one to go when its attempt has ended. A shim that
jobd has lost its channel to takes signals instead: TERM = stop, USR1 = kill, USR2 = wind_down.
"""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypedDict

    class Terms(TypedDict):
        """How to follow and end an attempt. `log` is below the log folder."""

        attempt: int
        user: str | None
        log: str
        log_max_bytes: int
        finish: str
        timeout_s: float | None
        stop_signal: int
        stop_timeout_s: float

    class Order(Terms):
        """Start this attempt. All paths are absolute, but `log` is not."""

        command: str | list[str]
        dir: str
        umask: int | None
        limits: dict[str, Any]  # fields of model.Limits that are set
        timezone: str
        env_file: str | None
        env: dict[str, str]
        own_env: dict[str, str]  # JOBD_…: nothing overrides it


#: The keys of Terms.
TERMS = ("attempt", "user", "log", "log_max_bytes", "finish", "timeout_s", "stop_signal", "stop_timeout_s")
#: What a signal means to a busy shim. A service manager sends TERM too, hence its meaning.
HALT_SIGNALS = {"stop": signal.SIGTERM, "kill": signal.SIGUSR1, "wind_down": signal.SIGUSR2}
#: Largest message. Packets have to fit into a socket's buffer whole.
MAX_MESSAGE_BYTES = 96 * 1024


class UnstartableError(Exception):
    """The command cannot be started, now or later. The text says what is wrong, where, and what to do."""
