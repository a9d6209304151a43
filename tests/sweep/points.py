"""The points of the sweep: a scenario and a fault at one of its system calls.

They come from a run without a fault, so they are the same every time, but for what the processes do in another order.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.sweep.scenarios import Scenario
from tests.sweep.tracing import KILL, QUIET_AT_START, Call, Fault

#: What a call may return that fails for the moment. Those that are not here fail only by a bug of the caller.
ERRORS = {
    "accept4": ("EMFILE",),
    "clone": ("EAGAIN", "ENOMEM"),
    "clone3": ("EAGAIN", "ENOMEM"),
    "dup": ("EMFILE",),
    "fdatasync": ("EIO",),
    "fork": ("EAGAIN",),
    "fsync": ("EIO",),
    "ftruncate": ("EIO", "ENOSPC"),
    "link": ("ENOSPC", "EIO"),
    "mkdir": ("ENOSPC",),
    "mkdirat": ("ENOSPC",),
    "mknod": ("ENOSPC",),
    "mknodat": ("ENOSPC",),
    "openat": ("EMFILE", "EIO"),
    "pidfd_open": ("EMFILE",),
    "pipe2": ("EMFILE",),
    "pwrite64": ("ENOSPC", "EIO"),
    "sendmsg": ("EAGAIN",),
    "sendto": ("EAGAIN",),
    "socketpair": ("EMFILE",),
    "splice": ("ENOSPC", "EIO"),
    "unlink": ("EIO",),
    "vfork": ("EAGAIN",),
}
#: Looking at processes is a long row of like calls; one of so many is enough to fail.
LOOKS_APART = 10


@dataclass(frozen=True, slots=True)
class Point:
    """`at`: the call in the run without a fault."""

    scenario: Scenario
    fault: Fault | None
    at: str = ""

    @property
    def kind(self) -> str:
        return "" if self.fault is None else "kills" if self.fault.what == KILL else "errors"

    def __str__(self) -> str:
        return f"{self.scenario} {self.fault or 'no fault'}"


def points_of(scenario: Scenario, calls: list[Call]) -> Iterator[Point]:
    """Where to put a fault: a kill before each call, and an error in its place, one after the other of those it has."""
    looks = 0
    for call, is_look in _with_looks(calls):
        if scenario.is_start and call.name in QUIET_AT_START:
            continue
        looks += is_look
        if not is_look:
            yield Point(scenario, Fault(call.name, call.nth), call.text)
        if is_look and (call.name != "openat" or looks % LOOKS_APART != 1):
            continue
        if scenario.is_start and call.name in ("pipe2", "socketpair"):
            continue  # without its first descriptors jobd cannot start, and says so by a traceback
        if errors := ERRORS.get(call.name):
            error = errors[0 if is_look else call.nth % len(errors)]
            yield Point(scenario, Fault(call.name, call.nth, error), call.text)


def _with_looks(calls: list[Call]) -> Iterator[tuple[Call, bool]]:
    """Each call, and whether it only looks at processes: opens, reads or closes a file of /proc."""
    looking: set[str] = set()
    for call in calls:
        fd = re.match(r"\w+\((\d+)", call.text)
        if call.name == "openat" and '"/proc/' in call.text:
            looking.add(call.text.rpartition(" = ")[2].split()[0])
            yield call, True
        elif fd and fd[1] in looking and call.name in ("read", "close", "fcntl"):
            if call.name == "close":
                looking.discard(fd[1])
            yield call, True
        else:
            yield call, False
