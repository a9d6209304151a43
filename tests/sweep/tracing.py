"""strace on exactly one process: the list of its system calls, and one of them as the place of a fault.

Only that process is traced, never its children, so a job is not touched. A kill comes *before* the call,
which is not made any more; an error is returned in its place. Whoever calls `attach` must call `end`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

KILL = "KILL"
#: A tracer that needs longer to begin or to leave has failed.
PATIENCE_S = 20.0

#: Calls that change something outside of the process, wait, or hear of the world. Between two others nothing
#: can be seen from outside. Those of other machines have other names; strace takes a name with a `?` if it knows it.
CALLS = """
    write pwrite64 sendto sendmsg ftruncate fdatasync fsync splice link linkat unlink unlinkat rename renameat
    renameat2 mkdir mkdirat mknod mknodat openat chmod fchmod fchmodat close dup dup2 dup3 pipe2 socket socketpair bind
    listen connect accept4 pidfd_open pidfd_send_signal kill clone clone3 fork vfork wait4 waitid read recvfrom recvmsg
    poll ppoll epoll_wait epoll_pwait epoll_ctl fcntl flock chdir umask setsid prctl exit_group
""".split()  # noqa: SIM905  a list of words
#: While an interpreter starts, most calls only look for modules.
QUIET_AT_START = frozenset({"openat", "read", "close", "fcntl"})


class CannotTraceError(Exception):
    """strace is missing, or may not attach."""


class Fault(NamedTuple):
    """At the `nth` call of this name, from the attachment on: KILL, or the name of an error that it returns."""

    call: str
    nth: int
    what: str = KILL

    def __str__(self) -> str:
        return f"{self.call}:{self.nth}:{self.what}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        """The reverse of `str`. Raises ValueError."""
        call, nth, what = text.split(":")
        return cls(call, int(nth), what)


@dataclass(frozen=True, slots=True)
class Call:
    """One system call. Not `done`: the process was killed before it, or is still in it."""

    name: str
    nth: int
    text: str

    @property
    def done(self) -> bool:
        return not self.text.endswith(("?", "<unfinished ...>", "<detached ...>"))


class Tracer:
    """Attached to a process once it is made. `trace` is the file for its calls."""

    def __init__(self, pid: int, trace: Path, fault: Fault | None = None) -> None:
        """Raises CannotTraceError."""
        self._pid, self._trace = pid, trace
        argv = [
            "strace",
            "-qq",
            "-o",
            str(trace),
            "-p",
            str(pid),
            "-e",
            f"trace={','.join(f'?{call}' for call in CALLS)}",
        ]
        if fault:
            what = "signal=SIGKILL" if fault.what == KILL else f"error={fault.what}"
            argv += ["-e", f"inject={fault.call}:{what}:when={fault.nth}"]
        self._strace = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + PATIENCE_S
        while _tracer_of(pid) != self._strace.pid:
            if self._strace.poll() is not None or time.monotonic() > deadline:
                self.end()
                assert self._strace.stderr is not None
                raise CannotTraceError(f"strace cannot attach to {pid}: {self._strace.stderr.read().strip()}")
            time.sleep(0.001)

    def calls(self) -> list[Call]:
        """So far, in order."""
        counts: Counter[str] = Counter()
        found = []
        for line in self._trace.read_text(errors="replace").splitlines():
            if match := re.match(r"(\w+)\(", line):
                name = match[1]
                if name != "restart_syscall":
                    counts[name] += 1
                    found.append(Call(name, counts[name], line))
        return found

    def saw(self, text: str) -> bool:
        """Whether it stands in the trace."""
        return text in self._trace.read_text(errors="replace")

    def await_quiet(self) -> None:
        """Until the process does nothing more than to wait, or has gone."""
        before, quiet = -1, 0
        deadline = time.monotonic() + PATIENCE_S
        while quiet < 3 and time.monotonic() < deadline and self._strace.poll() is None:
            size = self._trace.stat().st_size
            quiet = quiet + 1 if size == before else 0
            before = size
            time.sleep(0.005)

    def end(self) -> None:
        """Let the process go, if it lives."""
        if self._strace.poll() is None:
            self._strace.terminate()
        try:
            self._strace.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._strace.kill()
            self._strace.wait()


@cache
def hindrance() -> str | None:
    """Why nothing can be traced here; None: it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        Tracer(sleeper.pid, Path(os.devnull)).end()
    except CannotTraceError as error:
        return str(error)
    finally:
        sleeper.kill()
        sleeper.communicate()
    return None


def _tracer_of(pid: int) -> int:
    """Pid of whoever traces it; 0: nobody, or there is no such process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(status.partition("TracerPid:")[2].split()[0])
