"""What a child subreaper does with the children that come to it: reap them, and keep what only it can know.

When a shim is killed, the processes of its attempt become children of the next subreaper up: the
forkserver, or jobd if that has died too. Called by those two. Stdlib only.
"""

from __future__ import annotations

import os

from supervisor import process_tree, record


def next_ended() -> int | None:
    """A child that has ended and is not reaped yet; None: there is none now. ChildProcessError: no child at all."""
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended.si_pid if ended else None


def bury(pid: int, attempts_folder: str) -> None:
    """Reap it. If it is the main process of an attempt whose shim was killed, its record is told first how it ended."""
    try:
        who = process_tree.identity(pid)
        if who and process_tree.leads_a_session(pid) and (status := status_of(pid)):
            record.note_main_exit(attempts_folder, who, status)
    except OSError:
        pass  # for want of descriptors; should it matter, its attempt is lost
    os.waitpid(pid, 0)


def status_of(pid: int) -> dict[str, int] | None:
    """Its `exit_code` or the `signal` that ended it; it is not reaped. None: it goes on."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return {"exit_code" if ended.si_code == os.CLD_EXITED else "signal": ended.si_status}
