"""The real daemon in a temporary folder, and the real jobctl in front of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

PROJECT = Path(__file__).resolve().parents[2]
JOBCTL = str(Path(sys.executable).with_name("jobctl"))
#: Long enough for a slow machine; a test that needs all of it has failed.
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Result:
    """What a jobctl call came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Jobd:
    """One daemon, which may be stopped and started again on the same state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "jobs.toml"
        self.state = folder / "state"
        # A short path: a socket's may have 107 bytes.
        self.socket = folder / "s"
        self.process: subprocess.Popen[str] | None = None
        self.log = ""

    def configure(self, text: str) -> None:
        self.config.write_text(text)

    def start(self, text: str | None = None) -> Jobd:
        """Start it and wait until it serves."""
        if text is not None:
            self.configure(text)
        command = [sys.executable, "-m", "supervisor", "-c", str(self.config), "--state-dir", str(self.state)]
        self.process = subprocess.Popen(
            [*command, "--socket", str(self.socket)], stderr=subprocess.PIPE, text=True, cwd=PROJECT
        )
        serves = threading.Event()
        self._reader = threading.Thread(target=self._read_log, args=(self.process, serves), daemon=True)
        self._reader.start()
        assert serves.wait(PATIENCE_S)
        assert " serves " in self.log, f"jobd did not start:\n{self.log}"
        return self

    def _read_log(self, process: subprocess.Popen[str], serves: threading.Event) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self.log += line
                if " serves " in line:
                    serves.set()
        serves.set()

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send it a signal and wait for its end; its exit code."""
        assert self.process is not None
        self.process.send_signal(signum)
        return self.process.wait(PATIENCE_S)

    def ctl(self, *arguments: str, stdin: str | None = None, code: int | None = 0, **env: str) -> Result:
        """Call jobctl. `code`: the exit code it must have; None = any."""
        done = subprocess.run(
            [JOBCTL, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=PROJECT,
            env={**os.environ, "JOBD_SOCKET": str(self.socket), **env},
            check=False,
        )
        result = Result(done.returncode, done.stdout, done.stderr)
        if code is not None:
            assert result.code == code, f"jobctl {' '.join(arguments)}: {result}"
        return result

    def jobs(self, *names: str) -> dict[str, Any]:
        """JOBs by name."""
        return {job["job"]: job for job in self.ctl("status", *names, "--json").json["jobs"]}

    def states(self, *names: str) -> dict[str, str]:
        return {name: job["state"] for name, job in self.jobs(*names).items()}

    def await_event(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read the journal from its beginning until an entry is as wanted."""
        with subprocess.Popen(
            [JOBCTL, "events", "-f", "--since", "0", "--json"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env={**os.environ, "JOBD_SOCKET": str(self.socket)},
        ) as reader:
            assert reader.stdout is not None
            try:
                for line in reader.stdout:
                    event: dict[str, Any] = json.loads(line)
                    if wanted(event):
                        return event
            finally:
                reader.kill()
        raise AssertionError("the stream of events ended")

    def clean_up(self) -> None:
        """Stop what is left: the jobs first, then the daemon, by pid."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.ctl("shutdown", "--stop-jobs", code=None)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    child.kill()
                self.process.kill()
                self.process.wait()


@pytest.fixture
def jobd(tmp_path: Path) -> Iterator[Jobd]:
    daemon = Jobd(tmp_path)
    yield daemon
    daemon.clean_up()
