"""One jobd in a folder of its own, whose processes are faulted one system call at a time.

Owns the daemon, the operator, and the memory of who was killed. Knows no scenario.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ctl.failure import Failure
from tests.crash import ledger
from tests.crash.casualties import Casualties
from tests.crash.evidence import Evidence, read_database
from tests.crash.family import Family, Identity, Process, Sighting, find, send
from tests.crash.history import ACTIVE
from tests.crash.invariants import Violation, check
from tests.crash.ledger import Key
from tests.crash.operator import Answer, Operator, Order
from tests.sweep import dags
from tests.sweep.dags import JOBS, Job
from tests.sweep.tracing import Fault, Tracer

PROJECT = Path(__file__).resolve().parents[2]
#: Whoever needs longer has failed.
SERVE_S, END_S, TIDY_S = 30.0, 30.0, 15.0
#: The interpreter waits for a word, so that it can be traced from its first call on.
_WAIT_THEN_RUN = 'read -r word; exec "$@" </dev/null'


class BrokenError(Exception):
    """The world cannot go on; the message says why."""


class Losses(Casualties):
    """Logs have to be whole, but for those of the attempts in `torn`."""

    def __init__(self) -> None:
        super().__init__()
        self.torn: set[Key] = set()

    def shims_killed(self, key: Key) -> int:
        return 1 if key in self.torn else 0


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.losses = Losses()
        self._state, self._socket = folder / "state", folder / "s"
        self._ledger = folder / "ledger"
        self.family = Family(self._state, self._socket)
        self.operator = Operator(random.Random(0), str(self._socket), dags.setup(), self.notes.append)
        self.unanswered: list[Order] = []
        self.jobd: subprocess.Popen[bytes] | None = None
        self.removal_failed = False  # a record may be left until the next start
        self.exit_codes: list[int] = []  # of daemons that ended by themselves, with an error
        self._traces = 0
        self._victim: Process | None = None
        self._tracer: Tracer | None = None

    def open(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "jobs.toml").write_text(dags.toml())
        (self.folder / "sweep.sh").write_text(dags.SWEEP_SH)
        self.launch()
        if not self.await_service():
            raise BrokenError("jobd does not start; see jobd.log")
        for job in JOBS.values():  # so that the first run of a dag makes the same calls as the next
            (self._state / "logs" / job.dag).mkdir(mode=0o750)

    def note(self, text: str) -> None:
        self.notes.append(text)

    # ---- jobd ----------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start jobd; it need not serve yet."""
        self.launch_waiting()
        self.let_go()

    def launch_waiting(self) -> int:
        """The pid of a process that becomes jobd at `let_go`."""
        command = [sys.executable, "-m", "supervisor", "-c", str(self.folder / "jobs.toml")]
        command += ["--state-dir", str(self._state), "--socket", str(self._socket)]
        with (self.folder / "jobd.log").open("ab") as log:
            self.jobd = subprocess.Popen(
                ["/bin/sh", "-c", _WAIT_THEN_RUN, "sh", *command], stdin=subprocess.PIPE, stderr=log, cwd=PROJECT
            )
        return self.jobd.pid

    def let_go(self) -> None:
        assert self.jobd is not None
        assert self.jobd.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.jobd.stdin.write(b"go\n")
            self.jobd.stdin.close()

    def has_gone(self) -> bool:
        """Whether jobd has ended."""
        return self.jobd is None or self.jobd.poll() is not None

    def await_service(self) -> bool:
        """False: it has ended instead."""
        self.until("jobd serves", SERVE_S, lambda: self.has_gone() or self.operator.reaches())
        return not self.has_gone()

    def kill_jobd(self) -> None:
        seen = self.look()
        assert seen.jobd is not None
        self.kill(seen.jobd)

    def ask_to_leave(self) -> None:
        """TERM; jobs go on."""
        assert self.jobd is not None
        if (seen := self.look()).jobd is not None:
            self.losses.left(seen.jobd.who)
        self.jobd.send_signal(signal.SIGTERM)

    def restore(self) -> None:
        """A jobd that serves, whatever was done to the last one; then what it has not answered is asked again."""
        if self.has_gone():
            self._note_end()
            self.launch()
        if not self.await_service():
            self._note_end()
            raise BrokenError("jobd does not start without a fault; see jobd.log")
        self.until("jobd is well", END_S, lambda: self.operator.ask("status")["daemon"]["state"] == "running")
        orders, self.unanswered = self.unanswered, []
        for order in orders:
            self._give(order)
        if self.unanswered:
            raise BrokenError(f"no answer without a fault: {[order.text for order in self.unanswered]}")

    def _note_end(self) -> None:
        assert self.jobd is not None
        code = self.jobd.wait()
        if code not in (0, -signal.SIGKILL):
            self.exit_codes.append(code)

    # ---- orders --------------------------------------------------------------------------------

    def order(self, method: str, job: Job, **options: Any) -> None:
        """A command, whether it is answered or not. One that is not is repeated by `restore`."""
        names = [job.dag if method == "restart" else job.name]
        self._give(self.operator.new(method, {"names": names, **options}))

    def _give(self, order: Order) -> None:
        before = len(order.answers)
        self.operator.give(order)
        if len(order.answers) == before:
            self.unanswered.append(order)

    def await_end(self, job: Job) -> bool:
        """Until the newest run of its dag has ended. False: jobd does not answer."""
        try:
            self.operator.ask("wait", END_S + 5, names=[job.dag], timeout_s=END_S)
        except Failure as failure:
            if self.has_gone() or failure.kind == "unreachable":
                return False
            self.note(f"wait for {job.name}: {failure}")
            return False
        return True

    def row(self, job: Job) -> Answer:
        """The JOB of its newest run."""
        [row] = self.operator.ask("status", names=[job.name])["jobs"]
        return dict(row)

    def begin(self, job: Job, line: str = "began") -> None:
        """Start it and wait until it has said this; nothing is at fault."""
        before = self.count(job, line)
        self.order("restart", job)
        self.until(f"{job.name} says {line}", END_S, lambda: self.count(job, line) > before)
        # It may speak before its shim has noted its pid.
        self.until(f"{job.name} runs", END_S, lambda: self.row(job)["pid"] is not None)

    def count(self, job: Job, what: str) -> int:
        """How often jobs of this name have said this."""
        return sum(line.what == what and line.key[1] == job.name for line in ledger.read(self._ledger))

    def gate(self, job: Job, *, is_open: bool) -> None:
        path = self.folder / f"gate.{job.name}"
        if is_open:
            path.touch()
        else:
            path.unlink(missing_ok=True)

    # ---- processes -----------------------------------------------------------------------------

    def look(self) -> Sighting:
        """Who is there now."""
        seen = self.family.look(self.jobd.pid if self.jobd else None)
        self.losses.saw(seen)
        return seen

    def forkserver(self) -> Process:
        return self._only("forkserver", lambda seen: seen.forkservers)

    def idle_shim(self) -> Process:
        return self._only("idle shim", lambda seen: [shim for shim in seen.shims if not seen.attempts[shim.who]])

    def busy_shim(self) -> Process:
        return self._only("busy shim", lambda seen: [shim for shim in seen.shims if seen.attempts[shim.who]])

    def _only(self, what: str, choose: Callable[[Sighting], list[Process]]) -> Process:
        self.until(f"there is one {what}", TIDY_S, lambda: len(choose(self.look())) == 1)
        return choose(self.look())[0]

    def kill(self, process: Process) -> None:
        """And see it dead."""
        attempts = self.look().attempts.get(process.who, set())
        pidfd = os.pidfd_open(process.who.pid)
        send(process.who, signal.SIGKILL)
        self.losses.killed(process.who, attempts)
        _await_exit(pidfd, TIDY_S)
        if self.jobd is not None and process.who.pid == self.jobd.pid:
            self.jobd.wait()

    def await_exit(self, process: Process) -> None:
        """Until it has gone, or is a zombie."""

        self.until(f"{process.name} has gone", TIDY_S, lambda: is_gone(process))

    def add_idle_shim(self) -> None:
        """One that has just ended its first attempt."""
        self.order("restart", JOBS["warm"])
        self.await_end(JOBS["warm"])

    def await_reaped(self, process: Process) -> None:
        """Until its parent has seen its end."""
        self.until(f"{process.name} is reaped", TIDY_S, lambda: find(process.who.pid) is None)

    def make_ready(self, idle: int) -> None:
        """One forkserver, so many idle shims (0 or 1), and nobody else."""
        seen = self.look()
        if seen.jobs:
            raise BrokenError(f"processes of ended attempts live: {[key for _, key in seen.jobs.values()]}")
        if len(seen.shims) > 1:
            self._kill_shims()
        if not seen.forkservers:
            self._kill_shims()
        if not seen.forkservers or (idle and len(seen.shims) != 1):
            self.add_idle_shim()
        if not idle:
            self._kill_shims()
        self.until("one forkserver", TIDY_S, lambda: len(self.look().forkservers) == 1)

    def _kill_shims(self) -> None:
        for shim in self.look().shims:
            self.kill(shim)
            self.await_reaped(shim)

    # ---- tracing -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def tracing(self, pid: int, fault: Fault | None) -> Iterator[Tracer]:
        self._traces += 1
        tracer = Tracer(pid, self.folder / f"trace.{self._traces}", fault)
        self.note(f"trace.{self._traces}: pid {pid}, {fault or 'no fault'}")
        self._victim, self._tracer = find(pid), tracer
        try:
            yield tracer
        finally:
            tracer.end()
            self._victim = self._tracer = None

    def meanwhile(self, condition: Callable[[], Any]) -> None:
        """Until it is so, or the traced process has gone."""
        self.until("the traced process goes on or goes", END_S, lambda: condition() or self.victim_has_gone())

    def await_pause(self) -> None:
        """Until the traced process does nothing but wait."""
        assert self._tracer is not None
        self._tracer.await_quiet()

    def victim_has_gone(self) -> bool:
        assert self._victim is not None
        return is_gone(self._victim)

    # ---- the end -------------------------------------------------------------------------------

    def finish(self) -> list[Violation]:
        """Leave in peace; then all that must hold, on what is left."""
        found = [Violation("untidy", text) for text in self._untidy()]
        self.ask_to_leave()
        assert self.jobd is not None
        code = self.jobd.wait(TIDY_S)
        if code:
            found.append(Violation("broken", f"jobd leaves with code {code}"))
        self.until("all helpers leave", TIDY_S, lambda: not self._members())
        left = [path.name for path in self._files()]
        found += [Violation("untidy", f"files that nobody needs: {left}")] if left else []
        attempts, nodes, events = read_database(self._state / "jobd.db", self.folder / "copy")
        lines, logs = ledger.read(self._ledger), self._state / "logs"
        setup, orders = dags.setup(), self.operator.orders
        found += check(Evidence(setup, lines, attempts, nodes, events, self.losses, orders, logs))
        return found

    def tracebacks(self) -> int:
        """How many bugs have spoken so far."""
        paths = [self.folder / "jobd.log", self._state / "shims.log"]
        return sum(path.read_text(errors="replace").count("Traceback") for path in paths if path.exists())

    def _untidy(self) -> list[str]:
        """What is left of attempts that have ended, in files; it may take a moment."""

        def problems() -> list[str]:
            shims = {f"{shim.who.pid}-{shim.who.start}" for shim in self.look().shims}
            return [f"{path.parent.name}/{path.name} is left" for path in self._files() if path.name not in shims]

        with contextlib.suppress(BrokenError):
            self.until("nothing is left", TIDY_S, lambda: not problems())
        return problems()

    def _files(self) -> list[Path]:
        """What shims and attempts have in the state directory."""
        paths = [path for name in ("attempts", "fifos") for path in (self._state / name).iterdir()]
        return [path for path in paths if not (self.removal_failed and path.suffix == ".json")]

    def close(self) -> None:
        """Whatever is left ends, by pid; nobody else is touched."""
        if self.jobd is not None and self.jobd.poll() is None:
            self.jobd.kill()
            self.jobd.wait()
        for _ in range(3):
            seen = self.look()
            for who in [*(helper.who for helper in (*seen.forkservers, *seen.shims)), *seen.jobs]:
                send(who, signal.SIGKILL)

    def _members(self) -> list[Identity]:
        seen = self.look()
        return [*(helper.who for helper in (*seen.forkservers, *seen.shims)), *seen.jobs]

    def until(self, what: str, patience_s: float, condition: Callable[[], Any]) -> None:
        """Raises BrokenError."""
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                raise BrokenError(f"waited {patience_s:g} s in vain until {what}")
            time.sleep(0.005)

    def is_over(self, job: Job) -> bool:
        return self.row(job)["state"] not in {*ACTIVE, "queued"}


def is_gone(process: Process) -> bool:
    """A zombie has gone."""
    now = find(process.who.pid)
    return now is None or now.who != process.who or not now.lives


def _await_exit(pidfd: int, patience_s: float) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = poll.poll(patience_s * 1000)
    os.close(pidfd)
    if not ended:
        raise BrokenError(f"a killed process does not end within {patience_s:g} s")
