"""Strangers of the same user, which must never receive a signal.

They block all signals, so whatever reaches them stays pending and can be seen. A twin looks like a process
of an attempt that runs: same run, same job, same number, but of another jobd, at another socket.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.crash.family import find, read
from tests.crash.ledger import Key

#: Lines of /proc/PID/status that tell what has arrived.
_PENDING = (b"SigPnd", b"ShdPnd")
#: Twins at once; the oldest leaves first.
MAX_TWINS = 4


class Strangers:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._canary = self._spawn({})
        self._twins: list[subprocess.Popen[bytes]] = []

    def add_twin(self, key: Key) -> None:
        """Of an attempt."""
        run, job, number = key
        if len(self._twins) == MAX_TWINS:
            _end(self._twins.pop(0))
        dag, _, at = run.partition("@")
        marks = {"JOB": job, "DAG": dag, "RUN": run, "RUN_DATE": at[:10], "ATTEMPT": str(number)}
        marks["SOCKET"] = str(self._folder / "another")
        self._twins.append(self._spawn({f"JOBD_{name}": value for name, value in marks.items()}))

    def problem(self) -> str:
        """What has happened to them; empty: nothing."""
        for stranger in (self._canary, *self._twins):
            process = find(stranger.pid)
            if process is None or process.state not in "SRD":
                return f"{stranger.pid} is {process.state if process else 'gone'}"
            for line in read(stranger.pid, "status").splitlines():
                name, _, mask = line.partition(b":")
                if name in _PENDING and int(mask, 16):
                    return f"{stranger.pid} received {line.decode()}"
        return ""

    def end(self) -> None:
        for stranger in (self._canary, *self._twins):
            _end(stranger)

    def _spawn(self, marks: dict[str, str]) -> subprocess.Popen[bytes]:
        old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            env = {**os.environ, **marks}
            return subprocess.Popen(
                ["sleep", "3600"], start_new_session=True, cwd=self._folder, env=env, stdout=subprocess.DEVNULL
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _end(stranger: subprocess.Popen[bytes]) -> None:
    stranger.kill()
    stranger.wait()
