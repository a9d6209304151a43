"""One daemon under attack: a folder, a jobd, an operator, a killer, strangers, and what is checked on the way.

The folder is kept if anything was wrong. `run` returns what was found.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctl.failure import Failure
from tests.crash import dags, ledger
from tests.crash.casualties import Casualties
from tests.crash.evidence import Evidence, read_database
from tests.crash.family import Family, Sighting, processes, send
from tests.crash.figures import Figures
from tests.crash.history import ACTIVE
from tests.crash.invariants import Violation, check
from tests.crash.killer import Killer
from tests.crash.ledger import Key
from tests.crash.operator import Operator
from tests.crash.story import Story
from tests.crash.strangers import Strangers

PROJECT = Path(__file__).resolve().parents[2]
#: Whoever needs longer has failed: to serve after a start, to end everything, to be tidy again.
SERVE_S, END_S, TIDY_S = 30.0, 60.0, 10.0
#: Longest time between two attacks.
MAX_PEACE_S = 0.15
#: Idle shims that a quiet daemon may keep.
MAX_IDLE_SHIMS = 4
#: Rows of history that are looked at.
MAX_ROWS = 10_000


class BrokenError(Exception):
    """The world cannot go on; the message says why."""


@dataclass(slots=True)
class Report:
    """What became of one world."""

    seed: int
    folder: Path
    figures: Figures
    violations: list[Violation] = field(default_factory=list)
    stories: list[str] = field(default_factory=list)


class World:
    def __init__(self, folder: Path, seed: int, kinds: set[str]) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.folder = folder
        self.setup = dags.make(self.rng)
        self.casualties = Casualties()
        self.figures = Figures()
        self.story = Story()
        self.note: Callable[[str], None] = self.story.note
        self._violations: list[Violation] = []
        self._finals: dict[Key, tuple[object, ...]] = {}
        self._state, self._socket = folder / "state", folder / "s"
        self.ledger, self.records = folder / "ledger", self._state / "attempts"
        self.family = Family(self._state, self._socket)
        self.operator = Operator(self.rng, str(self._socket), self.setup, self.note)
        self._killer = Killer(self, kinds)
        self._jobd: subprocess.Popen[bytes] | None = None
        self._strangers: Strangers | None = None
        self._descriptors = 0

    def run(self, kills: int) -> Report:
        """So many attacks, then peace, and the whole truth."""
        try:
            self._prepare()
            while self.casualties.kills.total() < kills:
                self._round()
            self._killer.thaw()
            self._finish()
        except (BrokenError, Failure, subprocess.TimeoutExpired) as error:
            self._violations.append(Violation("broken", str(error)))
        finally:
            self._clean_up()
        self.figures.kills.update(self.casualties.kills)
        self.figures.disturbances.update(self.casualties.disturbances)
        self.figures.violations.update(violation.kind for violation in self._violations)
        return Report(self.seed, self.folder, self.figures, self._violations, self._stories())

    # ---- attack ------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "jobs.toml").write_text(self.setup.toml())
        (self.folder / "job.sh").write_text(ledger.JOB_SH)
        self._strangers = Strangers(self.folder)
        self.launch()
        self._await_service()
        self._descriptors = len(self._open_files())
        self.operator.give(self.operator.new("start", {"names": []}))

    def _round(self) -> None:
        for _ in range(self.rng.choice((0, 1, 1, 2))):
            self.operator.act()
        self._killer.strike()
        if self._has_gone():
            if self.rng.random() < 0.5:
                time.sleep(self.rng.uniform(0.0, MAX_PEACE_S))  # jobs end while there is no jobd
            self.launch()
            self._await_service()
        self._check_now()

    def add_twin(self, key: Key) -> None:
        """A stranger that looks much like a process of this attempt."""
        assert self._strangers is not None
        self._strangers.add_twin(key)

    def launch(self) -> None:
        """Start jobd; it need not serve yet."""
        if self._jobd is not None:
            self._jobd.wait()
        command = [sys.executable, "-m", "supervisor", "-c", str(self.folder / "jobs.toml")]
        command += ["--state-dir", str(self._state), "--socket", str(self._socket)]
        with (self.folder / "jobd.log").open("ab") as log:
            self._jobd = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL, cwd=PROJECT)
        self.note(f"jobd {self._jobd.pid} is started")
        self.figures.starts += 1
        self._launched_at = time.monotonic()

    def leave(self) -> None:
        """TERM: it leaves, and jobs go on."""
        self.shut_down("SIGTERM")
        self.await_leave()

    def shut_down(self, how: str) -> None:
        """Ask it to go: by the name of a signal, or by an option of `shutdown`."""
        seen = self.look()
        assert self._jobd is not None
        self.note(f"jobd {self._jobd.pid} is asked to leave: {how}")
        if seen.jobd is not None:
            self.casualties.left(seen.jobd.who)
        if how.startswith("SIG"):
            self._jobd.send_signal(signal.Signals[how])
        else:
            self.operator.ask("shutdown", **{how: True})

    def await_leave(self) -> None:
        """It was asked to go, or killed."""
        assert self._jobd is not None
        code = self._jobd.wait(END_S)
        if code not in (0, -signal.SIGKILL):
            raise BrokenError(f"jobd exits {code}, asked to leave; see jobd.log")

    def look(self) -> Sighting:
        """Who is there now."""
        seen = self.family.look(self._jobd.pid if self._jobd else None)
        self.casualties.saw(seen)
        return seen

    def bury(self) -> None:
        """jobd has been killed: wait until it is gone, with its lock and its socket."""
        assert self._jobd is not None
        self._jobd.wait()

    def _has_gone(self) -> bool:
        """Whether jobd has ended. Only by our doing may it."""
        assert self._jobd is not None
        code = self._jobd.poll()
        if code not in (None, 0, -signal.SIGKILL):
            raise BrokenError(f"jobd ended by itself with code {code}; see jobd.log")
        return code is not None

    def _await_service(self) -> None:
        self._await(
            "jobd serves", SERVE_S, lambda: self._has_gone_by_itself() or self.operator.reaches(), pause_s=0.002
        )
        took_s = time.monotonic() - self._launched_at
        self.figures.worst_recovery_s = max(self.figures.worst_recovery_s, took_s)
        self.look()

    def _has_gone_by_itself(self) -> bool:
        assert self._jobd is not None
        if self._jobd.poll() is not None:
            raise BrokenError(f"jobd ended by itself with code {self._jobd.returncode}; see jobd.log")
        return False

    # ---- checks on the way -------------------------------------------------------------------

    def _check_now(self) -> None:
        """What can be seen while jobs run. The order of looking is what makes it sound."""
        began = {line.key for line in ledger.read(self.ledger) if line.what == "began"}
        rows = self.operator.ask("history", limit=MAX_ROWS)["attempts"]
        finals = {_key(row): _final(row) for row in rows if row["state"] not in ACTIVE}
        for key in began - {_key(row) for row in rows}:
            self._blame("unrecorded", "is executed, and no row knows it", key)
        for key, final in self._finals.items():
            if finals.get(key) != final:
                self._blame("changed", f"was {final}, and is {finals.get(key)} now", key)
        self._finals |= finals
        for process, key in self.look().jobs.values():
            if key in finals:
                self._blame("alive", f"is {finals[key]}, and process {process.who.pid} ({process.name}) lives", key)
        assert self._strangers is not None
        if problem := self._strangers.problem():
            self._blame("stranger", f"a process that is none of ours was touched: {problem}")

    def _blame(self, kind: str, text: str, key: Key | None = None) -> None:
        violation = Violation(kind, text, key)
        if not any(each.kind == kind and each.key == key for each in self._violations):
            self.note(f"VIOLATION {violation}")
            self._violations.append(violation)

    # ---- the end -----------------------------------------------------------------------------

    def _finish(self) -> None:
        """All faults are off: everything ends, nothing is left over, and all that was recorded is true."""
        self.note("peace")
        self.operator.release_all()
        self._repeat_what_was_not_answered()
        self.operator.release_all()
        try:
            self.operator.ask("wait", END_S + 5, timeout_s=END_S)
        except Failure as failure:
            jobs = self.operator.ask("status")["jobs"]
            left = [f"{job['run']} {job['job']} {job['state']}" for job in jobs if job["state"] in {*ACTIVE, "queued"}]
            raise BrokenError(f"not everything ends ({failure}): {left}") from None
        self._check_now()
        self._await_tidiness()
        before = self.operator.ask("status")
        self.leave()
        self._await("all helpers leave", TIDY_S, lambda: not self._members())
        self.launch()
        self._await_service()
        after = self.operator.ask("status")
        if before["jobs"] != after["jobs"] or before["runs"] != after["runs"]:
            self._blame("restart", "the status after a restart in peace is not the one before")
        self.leave()
        self._await("all helpers leave", TIDY_S, lambda: not self._members())
        if left_over := self._left_over():
            self._blame("untidy", f"files that nobody needs: {left_over}")
        self._check_evidence()

    def _repeat_what_was_not_answered(self) -> None:
        """Half of it: whoever got no answer may ask again."""
        for order in [order for order in self.operator.orders if not order.answers]:
            if self.rng.random() < 0.5:
                self.operator.give(order)

    def _await_tidiness(self) -> None:
        """Descriptors, processes and files are back where they began, but for a pool of idle shims."""

        def untidy() -> list[str]:
            seen = self.look()
            assert self._jobd is not None
            problems = [f"process {process.who.pid} of {key} lives" for process, key in seen.jobs.values()]
            family = {process.who.pid for process in (*seen.forkservers, *seen.shims)} | {self._jobd.pid}
            zombies = [each.who.pid for each in processes() if each.state == "Z" and each.parent in family]
            problems += [f"{pid} is a zombie" for pid in zombies]
            idle = len(seen.shims)
            files = self._open_files()
            if len(files) > self._descriptors + 2 * idle:
                problems.append(f"jobd had {self._descriptors} descriptors, and has {files} with {idle} idle shims")
            if idle > MAX_IDLE_SHIMS or len(seen.forkservers) > 1:
                problems.append(f"{idle} shims, {len(seen.forkservers)} forkservers")
            records = [path.name for path in (self._state / "attempts").glob("*.json")]
            return problems + [f"record {name} is left" for name in records]

        try:
            self._await("jobd is tidy", TIDY_S, lambda: not untidy(), untidy)
        except BrokenError as error:
            self._blame("untidy", str(error))

    def _left_over(self) -> list[str]:
        """Files of the state directory that nobody needs any more."""
        return [path.name for name in ("attempts", "fifos") for path in (self._state / name).iterdir()]

    def _members(self) -> list[int]:
        """Pids of all that is ours and lives."""
        seen = self.look()
        helpers = [*seen.forkservers, *seen.shims, *([seen.jobd] if seen.jobd else [])]
        return [process.who.pid for process in helpers] + [who.pid for who in seen.jobs]

    def _open_files(self) -> list[str]:
        assert self._jobd is not None
        folder = Path(f"/proc/{self._jobd.pid}/fd")
        return sorted(str(path.readlink()) for path in folder.iterdir() if path.is_symlink())

    def _check_evidence(self) -> None:
        lines = ledger.read(self.ledger)
        attempts, nodes, events = read_database(self._state / "jobd.db", self.folder / "copy")
        logs = self._state / "logs"
        self._evidence = Evidence(
            self.setup, lines, attempts, nodes, events, self.casualties, self.operator.orders, logs
        )
        for violation in check(self._evidence):
            self._blame(violation.kind, violation.text, violation.key)
        for name in ("jobd.log", "state/shims.log"):
            path = self.folder / name
            if path.exists() and "Traceback" in path.read_text():
                self._blame("bug", f"{name} has a traceback")
        self.figures.take(self._evidence)

    # ---- small things ------------------------------------------------------------------------

    def _await(
        self,
        what: str,
        patience_s: float,
        condition: Callable[[], Any],
        describe: Callable[[], Any] = lambda: "",
        pause_s: float = 0.01,
    ) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                raise BrokenError(f"waited {patience_s:g} s in vain until {what}: {describe()}")
            time.sleep(pause_s)

    def _stories(self) -> list[str]:
        """What is to be known of each violation."""
        database = self._state / "jobd.db"
        events = []
        if self._violations and database.exists():
            copy = self.folder / "copy"
            copy = copy if not copy.exists() else self.folder / "copy2"
            events = read_database(database, copy)[2]
        lines = ledger.read(self.ledger) if self._violations else []
        return [self.story.tell(violation, lines, events) for violation in self._violations]

    def _clean_up(self) -> None:
        """Whatever is left ends, by pid; nobody else is touched."""
        self._killer.thaw()
        if self._strangers is not None:
            self._strangers.end()
        if self._jobd is not None:
            self._jobd.kill()
            self._jobd.wait()
        for signum in (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL):
            seen = self.look()
            for process in [*seen.forkservers, *seen.shims, *(process for process, _ in seen.jobs.values())]:
                send(process.who, signum)


def _key(row: dict[str, Any]) -> Key:
    return row["run"], row["job"], row["attempt"]


def _final(row: dict[str, Any]) -> tuple[object, ...]:
    return row["state"], row["reason"], row["exit_code"], row["signal"]
