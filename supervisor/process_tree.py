"""Processes told apart for certain, and the tree below one of them.

A pid alone names whoever bears it now, so a process is a pid *and* its start time, within one boot.
Called by the shim, which stops the tree below itself, and by the executor, which adopts shims.
Knows nothing of attempts. Stdlib only: it is part of the small process.
"""

# pathlib is too large for the small processes
# ruff: noqa: PTH110, PTH116, PTH208

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable

#: A process: pid, and start time in clock ticks since boot (field 22 of /proc/PID/stat).
Identity = tuple[int, int]

#: A walk sees only what is there at that moment. One signal goes round until a walk finds nobody new, at most so often.
MAX_ROUNDS = 16


def boot_id() -> str:
    """Names this boot of the machine: start times count from it."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from the state on (man proc: field 3); None if there is no such process.

    OSError: it cannot be told, for want of descriptors or memory. That must not look like an end.
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        text = os.read(fd, 1024)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return text[text.rindex(b")") + 2 :].split()  # the name before it may hold anything, brackets too


def parent_and_start(pid: int) -> tuple[int, int] | None:
    """Parent pid and start time of a process; None if there is no such process."""
    fields = _stat(pid)
    return (int(fields[1]), int(fields[19])) if fields else None


def name(pid: int) -> bytes:
    """Its short name, as `ps` shows it; empty if it cannot be told."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n")
    except OSError:
        return b""


def state(pid: int, start: int | None = None) -> str:
    """R, S, D, T, Z …, as `ps` has them; empty if there is no such process, or none with this start time."""
    fields = _stat(pid)
    return fields[0].decode() if fields and start in (None, int(fields[19])) else ""


def status_of_zombie(pid: int, start: int) -> dict[str, int] | None:
    """`exit_code` or `signal` of a process that has ended and is not reaped; None if we may not know."""
    fields = _stat(pid)
    if fields is None or int(fields[19]) != start or fields[0] != b"Z" or len(fields) < 50:
        return None
    status = int(fields[49])  # man proc: field 52, and 0 for those who may not know
    if status == 0 and not _may_know(pid):
        return None
    code = os.waitstatus_to_exitcode(status)
    return {"exit_code" if code >= 0 else "signal": abs(code)}


def _may_know(pid: int) -> bool:
    """Whether the kernel tells us everything of this process: it is ours, or we are root."""
    return os.geteuid() == 0 or os.stat(f"/proc/{pid}").st_uid == os.geteuid()


def leads_a_session(pid: int) -> bool:
    """Whether it has made its own session, as the main process of each attempt has."""
    fields = _stat(pid)
    return fields is not None and int(fields[3]) == pid


def identity(pid: int) -> Identity | None:
    """Who bears this pid now."""
    found = parent_and_start(pid)
    return (pid, found[1]) if found else None


def myself() -> Identity:
    """This process."""
    found = identity(os.getpid())
    assert found, "/proc is not mounted"
    return found


def open_process(who: Identity) -> int | None:
    """A pidfd of exactly this process, or None if it is gone. A zombie still counts; its pidfd is readable. OSError."""
    try:
        pidfd = os.pidfd_open(who[0])
    except ProcessLookupError:
        return None
    try:
        if identity(who[0]) == who:
            return pidfd
    except OSError:
        os.close(pidfd)
        raise
    os.close(pidfd)
    return None


def has_ended(pidfd: int) -> bool:
    """True for a zombie too."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def living(since: int) -> dict[int, tuple[int, int, int]]:
    """Start time, parent and session of every process that lives and was not started before `since` (clock ticks)."""
    found: dict[int, tuple[int, int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))) and fields[0] not in (b"Z", b"X"):
            start = int(fields[19])
            if start >= since:
                found[int(name)] = (start, int(fields[1]), int(fields[3]))
    return found


def descendants(root: int) -> list[Identity]:
    """All that is below `root` at this moment, as far as it can be seen, parents before their children.

    A child counts only while its parent is proved to be the one that was listed: if the parent
    has died meanwhile, its children have moved up, and the next walk finds them there.
    """
    start = identity(root)
    found: dict[Identity, None] = {}
    frontier = [start] if start else []
    while frontier:
        parent = frontier.pop()
        born: list[Identity] = []
        for pid in _children(parent[0]):
            stat = parent_and_start(pid)
            if stat and stat[0] == parent[0] and (pid, stat[1]) not in found:
                born.append((pid, stat[1]))
        if born and identity(parent[0]) == parent:
            frontier.extend(born)
            found.update(dict.fromkeys(born))
    return list(found)


def signal_all(walk: Callable[[], list[Identity]], signals: Iterable[int]) -> None:
    """Send the signals, in this order, once to each process that `walk` finds; to nothing else, whatever pids do.

    Parents come first: a shell should not see its command die, and go on to the next, before it hears itself.
    """
    done: set[Identity] = set()
    for _ in range(MAX_ROUNDS):
        try:
            new = [who for who in walk() if who not in done]
        except OSError:
            return  # no descriptors for that now; who kills walks again
        if not new:
            return
        for who in new:
            _send(who, signals)
        done.update(new)


def _send(who: Identity, signals: Iterable[int]) -> None:
    try:
        pidfd = open_process(who)
    except OSError:
        return  # no descriptor for it; who kills looks again
    if pidfd is None:
        return
    try:
        for signum in signals:
            signal.pidfd_send_signal(pidfd, signum)
    except (ProcessLookupError, PermissionError):
        pass  # it has just ended, or it has become another user's and is not ours to stop
    finally:
        os.close(pidfd)


def _children(pid: int) -> list[int]:
    """Pids of the children of all threads of a process."""
    if not _KERNEL_LISTS_CHILDREN:
        return _children_by_scan(pid)
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                children.extend(map(int, file.read().split()))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended while we looked; its children have moved up
    return children


def _children_by_scan(pid: int) -> list[int]:
    """The same for kernels built without CONFIG_PROC_CHILDREN: ask every process who its parent is."""
    everyone = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [other for other in everyone if (stat := parent_and_start(other)) and stat[0] == pid]


_KERNEL_LISTS_CHILDREN = os.path.exists("/proc/thread-self/children")
