"""A real jobd in a folder of its own, and what can be read of it from outside: socket, /proc, strace."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 20.0
REPLY_TIMEOUT_S = 300.0


class Daemon:
    """`with Daemon(toml) as jobd`: started and answering; at the end everything it started is gone."""

    def __init__(self, config: str) -> None:
        self._config = config

    def __enter__(self) -> Daemon:
        self._folder = tempfile.TemporaryDirectory(prefix="jobd-bench-")
        folder = Path(self._folder.name)
        (folder / "jobs.toml").write_text(self._config)
        self.socket_path = str(folder / "s")
        self.log_path = folder / "log"
        options = ["-c", str(folder / "jobs.toml"), "--state-dir", str(folder / "state"), "--socket", self.socket_path]
        argv = [sys.executable, "-m", "supervisor", *options]
        with self.log_path.open("wb") as log:
            self._popen = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._connection = self._connect()
        self._replies = self._connection.makefile("rb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGINT)  # stop the jobs, then exit
        try:
            self._popen.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for process in self.tree():
                process.kill()
            self._popen.wait()
        if kind:
            print(self.log_path.read_text()[-2000:], file=sys.stderr)
        self._replies.close()
        self._connection.close()
        self._folder.cleanup()

    def call(self, method: str, **params: Any) -> Any:
        """One request over the socket; its result."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._replies.readline())
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def run(self, dag: str) -> float:
        """Start a new run of a dag and wait for its end; seconds as its user sees them, from request to answer."""
        began = time.monotonic()
        self.call("start", names=[dag])
        self.call("wait", names=[dag])
        took_s = time.monotonic() - began
        states = {run["state"] for run in self.call("status", names=[dag])["runs"]}
        if states != {"success"}:
            raise RuntimeError(f"{dag} ended as {states}, not as success")
        return took_s

    def jobctl(self, *arguments: str) -> float:
        """Run the command-line client; seconds from its start to its end."""
        main = "import sys; from ctl.cli import main; sys.exit(main())"
        argv = [sys.executable, "-c", main, "--socket", self.socket_path, *arguments]
        began = time.monotonic()
        subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - began

    def tree(self) -> list[psutil.Process]:
        daemon = psutil.Process(self._popen.pid)
        return [daemon, *daemon.children(recursive=True)]

    def own(self) -> list[psutil.Process]:
        """jobd and its helpers, which are named after it. The rest are jobs."""
        daemon, *others = self.tree()
        return [daemon, *(process for process in others if process.name().startswith("jobd-"))]

    def jobs(self) -> list[psutil.Process]:
        own = self.own()
        return [process for process in self.tree() if process not in own]

    def memory_mb(self) -> tuple[float, float]:
        """Resident and proportional set size of jobd and its helpers, MB."""
        infos = [process.memory_full_info() for process in self.own()]
        return sum(info.rss for info in infos) / 1e6, sum(info.pss for info in infos) / 1e6

    def system_calls(self, seconds: float) -> int:
        """System calls that jobd and its helpers finish in this time, counted by strace."""
        with tempfile.NamedTemporaryFile("r", prefix="jobd-bench-") as counts:
            argv = ["strace", "-c", "-f", "-o", counts.name]
            argv += [word for process in self.own() for word in ("-p", str(process.pid))]
            strace = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
            time.sleep(seconds)
            if strace.poll() is not None:
                raise RuntimeError(
                    "strace cannot attach to jobd; run as root, or see /proc/sys/kernel/yama/ptrace_scope"
                )
            strace.send_signal(signal.SIGINT)
            strace.wait()
            total = [line.split() for line in counts if line.rstrip().endswith("total")]
        return int(total[-1][3]) if total else 0

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(REPLY_TIMEOUT_S)
            try:
                connection.connect(self.socket_path)
                return connection
            except OSError:
                connection.close()
            if self._popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"jobd did not start: {self.log_path.read_text()[-2000:]}")
            time.sleep(0.02)
