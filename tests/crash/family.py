"""The processes of one daemon under attack: found by its own folder, told apart by pid and start time.

A helper (jobd, forkserver, shim) has the state directory among its arguments; a job's process has the
daemon's socket in its environment. Names only tell the helpers apart, they never find anyone.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.crash.ledger import Key

SHIM, FORKSERVER = "jobd-shim", "jobd-forkserver"


class Identity(NamedTuple):
    """A process for certain: pid, and start time in clock ticks since boot."""

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class Process:
    who: Identity
    parent: int
    state: str
    name: str

    @property
    def lives(self) -> bool:
        return self.state not in "ZX"


@dataclass(slots=True)
class Sighting:
    """Everybody at one moment. `jobs`: processes of attempts; `parents`: who had made each helper."""

    jobd: Process | None = None
    forkservers: list[Process] = field(default_factory=list)
    shims: list[Process] = field(default_factory=list)
    jobs: dict[Identity, tuple[Process, Key]] = field(default_factory=dict)
    parents: dict[Identity, Identity | None] = field(default_factory=dict)
    attempts: dict[Identity, set[Key]] = field(default_factory=dict)  # of each shim


class Family:
    """`state_dir` and `socket` must be this daemon's alone."""

    def __init__(self, state_dir: Path, socket: Path) -> None:
        self._state_dir = state_dir
        self._argument = str(state_dir).encode()
        self._mark = f"JOBD_SOCKET={socket}".encode()

    def look(self, jobd_pid: int | None) -> Sighting:
        """Who is there. Zombies are left out: they have neither arguments nor an environment."""
        everyone = {process.who.pid: process for process in processes()}
        seen = Sighting()
        for process in everyone.values():
            if key := self._key_of(process):
                seen.jobs[process.who] = (process, key)
            elif self._is_helper(process):
                parent = everyone.get(process.parent)
                is_ours = parent is not None and self._is_helper(parent)
                seen.parents[process.who] = parent.who if parent and is_ours else None
                _sort_in(seen, process, parent, jobd_pid)
        seen.attempts = {shim.who: set() for shim in seen.shims}
        for process, key in seen.jobs.values():
            for ancestor in _ancestors(process, everyone):
                if ancestor.who in seen.attempts:
                    seen.attempts[ancestor.who].add(key)
        for who in seen.attempts:
            seen.attempts[who] |= self.attempts_of(who).keys()
        return seen

    def _is_helper(self, process: Process) -> bool:
        return self._argument in read(process.who.pid, "cmdline").split(b"\0")

    def _key_of(self, process: Process) -> Key | None:
        """The attempt that a process belongs to."""
        environ = read(process.who.pid, "environ").split(b"\0")
        if self._mark not in environ:
            return None
        marks = dict(line.decode().partition("=")[::2] for line in environ if line.startswith(b"JOBD_"))
        if not {"JOBD_RUN", "JOBD_JOB", "JOBD_ATTEMPT"} <= marks.keys():
            return None
        return marks["JOBD_RUN"], marks["JOBD_JOB"], int(marks["JOBD_ATTEMPT"])

    def attempts_of(self, shim: Identity) -> dict[Key, bool]:
        """The attempts whose records bear this shim's name, and whether they name the main process."""
        return {key: has_main for who, key, has_main in self._records() if who == shim}

    def _records(self) -> Iterator[tuple[Identity, Key, bool]]:
        """What the shims' own records tell. The log's path has run, job and number."""
        for path in (self._state_dir / "attempts").glob("*.json"):
            try:
                kept = json.JSONDecoder().raw_decode(path.read_text())[0]
                _, run, log = kept["log"].split("/")
            except (OSError, ValueError, KeyError):
                continue
            job, number, _ = log.rsplit(".", 2)
            yield Identity(kept["shim"], kept["shim_start"]), (run, job, int(number)), kept["pid"] is not None


def _sort_in(seen: Sighting, process: Process, parent: Process | None, jobd_pid: int | None) -> None:
    if process.who.pid == jobd_pid:
        seen.jobd = process
    elif process.name == SHIM or (parent is not None and parent.name == FORKSERVER):
        seen.shims.append(process)  # one that has just been forked still bears the forkserver's name
    else:
        seen.forkservers.append(process)


def _ancestors(process: Process, everyone: dict[int, Process]) -> Iterator[Process]:
    seen = {process.who.pid}
    parent = everyone.get(process.parent)
    while parent is not None and parent.who.pid not in seen:
        yield parent
        seen.add(parent.who.pid)
        parent = everyone.get(parent.parent)


def processes() -> Iterator[Process]:
    """All processes of the machine, zombies included."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (process := find(int(entry.name))):
            yield process


def find(pid: int) -> Process | None:
    """Who bears this pid now."""
    text = read(pid, "stat").decode(errors="replace")
    if not text:
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    return Process(Identity(pid, int(fields[19])), int(fields[1]), fields[0], name)


def read(pid: int, name: str) -> bytes:
    """A file of /proc/PID; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def send(who: Identity, signum: int) -> bool:
    """Signal exactly this process; False if it has gone."""
    try:
        pidfd = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return False
    try:
        now = find(who.pid)
        if now is None or now.who != who:
            return False
        signal.pidfd_send_signal(pidfd, signum)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
