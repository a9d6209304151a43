"""An attempt whose shim was killed, followed and ended by another shim in its place.

This process is not the parent of the attempt's processes, so it cannot wait for them. It knows them by
what they inherited and by where they ended up (see `_find`), watches each by a pidfd, and looks again
whenever one has gone. The
status of the main process comes from the record, where its new parent notes it (`record.note_main_exit`):
the forkserver, or jobd. If both had died too, nobody has seen it, and the attempt is lost.
Stdlib only: it is part of the small process.
"""

# pathlib is too large for the small processes
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import os
import select

from supervisor import process_tree, record
from supervisor.attempt import Attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from supervisor.capture import Capture
    from supervisor.process_tree import Identity
    from supervisor.record import Slot

#: A process cannot be known while it loads a program, so nobody is left only if so many looks found nobody.
EMPTY_LOOKS = 3
#: They are so far apart, doubled each time up to the longest.
FIRST_LOOK_S, LONGEST_LOOK_S = 0.002, 0.25
#: Processes that are watched by a pidfd at once; descriptors are needed to stop them, too.
MAX_WATCHED = 32
#: The longest environment that is looked at.
MAX_ENVIRONMENT_BYTES = 4 * 1024 * 1024


class TakenOver(Attempt):
    """`event_fd` tells that one of its processes has ended. Call `on_event` once to begin."""

    def __init__(self, kept: dict[str, Any], slot: Slot, capture: Capture, attempts_folder: str) -> None:
        super().__init__(kept["terms"], slot, kept, capture)
        self._main = (kept["pid"], kept["pid_start"]) if kept["pid"] and kept["pid_start"] else None
        self._marks = {f"{name}={value}".encode() for name, value in kept["env"].items()}
        self._since = kept["not_before"]
        self._forkserver = tuple(kept["forkserver"])
        self._attempts_folder = attempts_folder
        self._doubtful: set[Identity] = set()  # they may be another attempt's
        self._fifo_path = os.path.realpath(capture.fifo.path)
        self._pidfds: dict[Identity, int] = {}
        self._ends = select.epoll()
        self.event_fd = self._ends.fileno()
        self._found_any = False
        self._empty_looks = 0
        self._look_s = FIRST_LOOK_S
        self._cause = kept.get("cause")

    def on_event(self) -> bool:
        self._ends.poll(0)  # each end is told once
        self._look()
        return True

    def halt(self, how: str) -> None:
        if self._pidfds or not self._empty_looks:  # else it has ended by itself, and the stop came too late
            super().halt(how)

    def end(self) -> dict[str, Any]:
        self._ends.close()
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        ending = super().end()
        self.capture.fifo.remove()  # it was that shim's
        return ending

    # -- who is left -----------------------------------------------------------------------------

    def _look(self) -> None:
        try:
            self._watch(self._find())
            main = process_tree.state(*self._main) if self._main else ""
        except OSError:  # no descriptors: that nobody is seen says nothing now
            self._after(LONGEST_LOOK_S, self._look)
            return
        if main == "Z" and self._slot.main_exit() is None:
            main = self._note_zombie()
        if self._pidfds:
            self._found_any = True
            self._empty_looks = 0
            if not self._halting and self._must_stop(main):
                self._stop()
        elif not main:
            self._empty_looks += 1
        self.has_ended = self._empty_looks == EMPTY_LOOKS
        if not self._pidfds or main == "Z":  # nothing will tell us that its parent has reaped it
            self._after(self._look_s, self._look)
            self._look_s = min(self._look_s * 2, LONGEST_LOOK_S)

    def _note_zombie(self) -> str:
        """The kernel tells the status of a zombie to whoever may know it: keep it, whoever reaps that process."""
        assert self._main
        status = process_tree.status_of_zombie(*self._main)
        if status is not None:
            self._slot.note_main_exit(status)
            return ""
        return "Z"

    def _must_stop(self, main: str) -> bool:
        """It was being stopped when the shim died, or its main process has ended and that is the end."""
        if self._cause in ("stopped", "timeout"):
            return True
        if self._terms["finish"] == "main" and main in ("", "Z"):
            self._decide("exited")
            return True
        return False

    def _time_out(self) -> None:
        if self._pidfds:
            super()._time_out()
        else:
            self._after(LONGEST_LOOK_S, self._time_out)  # it seems to have ended, perhaps long ago

    def _watch(self, found: list[Identity]) -> None:
        """Have a pidfd of each of them, as far as there is room, and of no other."""
        for who in self._pidfds.keys() - set(found):
            os.close(self._pidfds.pop(who))  # so epoll forgets it too
        for who in found:
            if len(self._pidfds) == MAX_WATCHED:
                self._after(LONGEST_LOOK_S, self._look)
                break
            if who not in self._pidfds and (pidfd := process_tree.open_process(who)) is not None:
                self._pidfds[who] = pidfd
                self._ends.register(pidfd, select.EPOLLIN | select.EPOLLET)

    def _signal(self, signals: Iterable[int]) -> None:
        process_tree.signal_all(self._find, signals)

    # -- how they are found ----------------------------------------------------------------------

    def _find(self) -> list[Identity]:
        """The main process, those that bear a mark, strays, and all that is below these; parents first."""
        everyone = process_tree.living(self._since)
        children: dict[int, list[int]] = {}
        for pid, (_start, parent, _session) in everyone.items():
            children.setdefault(parent, []).append(pid)
        reapers = self._reapers()
        todo = [
            pid
            for pid, (start, parent, _session) in everyone.items()
            if (pid, start) == self._main or (parent in reapers and self._bears(pid))
        ]
        todo += self._strays(everyone, {*todo})
        found: set[int] = set()
        while todo:
            pid = todo.pop()
            if pid not in found and pid != os.getpid():
                found.add(pid)
                todo += children.get(pid, ())
        return sorted(((pid, everyone[pid][0]) for pid in found), key=lambda who: who[1])

    def _reapers(self) -> set[int]:
        """Who may have become the parent of what the killed shim left.

        What has another parent is a stranger's process: our marks were only copied to it.
        """
        ours = {1, self._forkserver[0], os.getppid()}
        if self._main and (main := process_tree.parent_and_start(self._main[0])):
            ours.add(main[0])
        pid = os.getppid()
        while pid > 1 and (stat := process_tree.parent_and_start(pid)):
            pid = stat[0]
            if process_tree.name(pid) in (b"jobd", b"systemd"):
                ours.add(pid)
        return ours

    def _strays(self, everyone: dict[int, tuple[int, int, int]], known: set[int]) -> list[int]:
        """Processes without a mark that came to the forkserver of the killed shim: of an attempt that had such a shim.

        Of this one if there is no other, and was none when they were seen first. The forkserver's own
        children, the shims, are in its session.
        """
        server = self._forkserver[0]
        strays = {
            (pid, start)
            for pid, (start, parent, session) in everyone.items()
            if parent == server != session and pid not in known and not _has_any_environment(pid)
        } - self._doubtful
        if not strays or process_tree.identity(server) != self._forkserver:
            return []
        taken = [kept for _fd, kept in record.under_way(self._attempts_folder) if "not_before" in kept]
        if [kept["attempt"] for kept in taken] == [self.id]:
            return [pid for pid, _start in strays]
        self._doubtful |= strays
        return []

    def _bears(self, pid: int) -> bool:
        """Whether the environment that it began with, or a descriptor, is of this attempt.

        Its start time was looked at before, so it cannot be a process from before the attempt.
        """
        return pid != os.getpid() and (self._has_environment(pid) or self._writes_to_fifo(pid))

    def _has_environment(self, pid: int) -> bool:
        return self._marks.issubset(_environment(pid))

    def _writes_to_fifo(self, pid: int) -> bool:
        folder = f"/proc/{pid}/fd"
        try:
            return any(
                os.readlink(f"{folder}/{fd}") == self._fifo_path and _is_writable(pid, fd) for fd in os.listdir(folder)
            )
        except OSError:
            return False

    # -- how it ended ----------------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        noted = self._slot.main_exit()
        if noted is None:
            if self._cause in ("stopped", "timeout"):
                return {}
            text = "its shim was killed, so nobody saw its main process end: see what the job did, then retry"
            return {"cause": "lost", "text": text}
        at = noted.pop("at")
        if not self._found_any:  # it had ended before we came
            noted |= {"finished_at": at, "duration_s": max(0.0, at - self._record["started_at"])}
        return noted


def _environment(pid: int) -> list[bytes]:
    """What it began with; empty if we may not know, or while it loads a program."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read(MAX_ENVIRONMENT_BYTES).split(b"\0")
    except OSError:
        return []


def _has_any_environment(pid: int) -> bool:
    """Whether it bears the marks of some attempt."""
    return any(entry.startswith(b"JOBD_ATTEMPT=") for entry in _environment(pid))


def _is_writable(pid: int, fd: str) -> bool:
    """Someone who only reads our FIFO is not the job's."""
    with open(f"/proc/{pid}/fdinfo/{fd}") as file:
        flags = next(line for line in file if line.startswith("flags:"))
    return bool(int(flags.split()[1], 8) & os.O_ACCMODE)
