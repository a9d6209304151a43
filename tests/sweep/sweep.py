"""The sweep itself: which points there are, what is done at one of them, and what was found.

A point is a scenario and a fault. Points come from a run without a fault, whose system calls are counted;
so they are the same every time, but for what the processes do in another order.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.family import Process
from tests.crash.invariants import Violation
from tests.sweep.scenarios import SHIM, Scenario
from tests.sweep.tracing import KILL, QUIET_AT_START, Call, Fault
from tests.sweep.world import BrokenError, World, is_gone

#: What a call may return that fails for the moment. Those that are not here fail only by a bug of the caller.
ERRORS = {
    "accept4": ("EMFILE",),
    "clone": ("EAGAIN", "ENOMEM"),
    "clone3": ("EAGAIN", "ENOMEM"),
    "dup": ("EMFILE",),
    "fdatasync": ("EIO",),
    "fork": ("EAGAIN",),
    "fsync": ("EIO",),
    "ftruncate": ("EIO", "ENOSPC"),
    "link": ("ENOSPC", "EIO"),
    "mkdir": ("ENOSPC",),
    "mknod": ("ENOSPC",),
    "mknodat": ("ENOSPC",),
    "openat": ("EMFILE", "EIO"),
    "pidfd_open": ("EMFILE",),
    "pipe2": ("EMFILE",),
    "pwrite64": ("ENOSPC", "EIO"),
    "sendmsg": ("EAGAIN",),
    "sendto": ("EAGAIN",),
    "socketpair": ("EMFILE",),
    "splice": ("ENOSPC", "EIO"),
    "unlink": ("EIO",),
    "vfork": ("EAGAIN",),
}
#: A world is given up after so many points, so that little has to be looked at if it was wrong in the end.
POINTS_PER_WORLD = 40
#: Looking at processes is a long row of like calls; one of so many is enough to fail.
LOOKS_APART = 10
#: A shim writes to its record so often until it says `begun`; the next time it tells the main process's pid.
WRITES_UNTIL_BEGUN = 2


@dataclass(frozen=True, slots=True)
class Point:
    """`at`: the call in the run without a fault."""

    scenario: Scenario
    fault: Fault | None
    at: str = ""

    @property
    def kind(self) -> str:
        return "" if self.fault is None else "kills" if self.fault.what == KILL else "errors"

    def __str__(self) -> str:
        return f"{self.scenario} {self.fault or 'no fault'}"


@dataclass(slots=True)
class Outcome:
    """What became of one point. Not `hit`: the call never came. `run`: the run that it was about."""

    point: Point
    calls: list[Call] = field(default_factory=list)
    hit: bool = False
    died: bool = False
    state: str = ""
    reason: str = ""
    run: str = ""
    took_s: float = 0.0
    problems: list[str] = field(default_factory=list)


def points_of(scenario: Scenario, calls: list[Call]) -> Iterator[Point]:
    """Where to put a fault: a kill before each call, and errors in its place."""
    looks = 0
    for call, is_look in _with_looks(calls):
        if scenario.is_start and call.name in QUIET_AT_START:
            continue
        looks += is_look
        if not is_look:
            yield Point(scenario, Fault(call.name, call.nth), call.text)
        if not is_look or (call.name == "openat" and looks % LOOKS_APART == 1):
            for error in ERRORS.get(call.name, ()):
                yield Point(scenario, Fault(call.name, call.nth, error), call.text)


def _with_looks(calls: list[Call]) -> Iterator[tuple[Call, bool]]:
    """Each call, and whether it only looks at processes: opens, reads or closes a file of /proc."""
    looking: set[str] = set()
    for call in calls:
        fd = re.match(r"\w+\((\d+)", call.text)
        if call.name == "openat" and '"/proc/' in call.text:
            looking.add(call.text.rpartition(" = ")[2].split()[0])
            yield call, True
        elif fd and fd[1] in looking and call.name in ("read", "close", "fcntl"):
            if call.name == "close":
                looking.discard(fd[1])
            yield call, True
        else:
            yield call, False


@dataclass(slots=True)
class Report:
    """What was found in one world. `rest`: what is wrong, and about no single point."""

    folder: Path
    outcomes: list[Outcome] = field(default_factory=list)
    rest: list[Violation] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        return not self.rest and not any(outcome.problems for outcome in self.outcomes)


def sweep(
    folder: Path, scenarios: list[Scenario], kinds: set[str], count: int | None = None, seed: int = 0
) -> Iterator[Report]:
    """Points of these kinds ("kills", "errors"): all, or about `count` of them, evenly spread. A report for each world.

    The first reports are of the runs without a fault.
    """
    points = []
    for report in do_all(folder / "count", [Point(scenario, None) for scenario in scenarios]):
        yield report
        points += [point for outcome in report.outcomes for point in points_of(outcome.point.scenario, outcome.calls)]
    wanted = [point for point in points if point.kind in kinds]
    every = max(1, len(wanted) // count) if count else 1
    yield from do_all(folder, wanted[seed % every :: every])


def do_all(folder: Path, points: list[Point]) -> Iterator[Report]:
    """These points, one world for many. The folder of a world in which all was well is removed."""
    left = deque(points)
    for number in itertools.count(1):
        if not left:
            return
        report = Report(folder / f"w{number}")
        world = World(report.folder)
        try:
            world.open()
            _do_until_it_breaks(world, left, report)
        except BrokenError as error:
            report.rest.append(Violation("broken", str(error)))
        finally:
            world.close()
        if report.is_well:
            shutil.rmtree(report.folder)
        else:
            (report.folder / "notes").write_text("\n".join(world.notes))
        yield report


def _do_until_it_breaks(world: World, left: deque[Point], report: Report) -> None:
    """Raises BrokenError if it does at the end."""
    while left and len(report.outcomes) < POINTS_PER_WORLD:
        outcome = Outcome(left.popleft())
        report.outcomes.append(outcome)
        try:
            _do(world, outcome)
        except BrokenError as error:
            outcome.problems.append(f"[broken] {error}")
            return
    by_run = {outcome.run: outcome for outcome in report.outcomes}
    for violation in world.finish():
        concerned = by_run.get(violation.key[0]) if violation.key else None
        if concerned is None:
            report.rest.append(violation)
        elif not (violation.kind == "log" and may_drop(concerned.point)):
            concerned.problems.append(str(violation))


def _do(world: World, outcome: Outcome) -> None:
    """One point. What is wrong with it may also be found at the end of the world. Raises BrokenError."""
    began_at, before = time.monotonic(), world.tracebacks()
    world.note(f"---- {outcome.point}")
    try:
        _play(world, outcome)
    finally:
        outcome.took_s = time.monotonic() - began_at
        if world.tracebacks() > before:
            outcome.problems.append("[bug] there is a traceback in jobd.log or shims.log")
        if world.exit_codes and outcome.point.kind != "errors":
            outcome.problems.append(f"[broken] jobd ended by itself, with {world.exit_codes}")
        world.exit_codes = []


def _play(world: World, outcome: Outcome) -> None:
    """Arrange, act under the tracer, restore, and see how the job ends. Raises BrokenError."""
    scenario, fault = outcome.point.scenario, outcome.point.fault
    job = scenario.job
    world.gate(job, is_open=False)
    world.make_ready(scenario.idle)
    story = scenario.play(world, job)
    victim = next(story)
    with world.tracing(victim.who.pid, fault) as tracer:
        try:
            next(story, None)
            tracer.await_quiet()
        finally:
            story.close()
            outcome.died = is_gone(victim)
    outcome.calls = tracer.calls()
    outcome.hit = any("(INJECTED)" in call.text for call in outcome.calls)
    if outcome.point.kind == "kills":
        outcome.hit = outcome.died = tracer.saw("+++ killed by SIGKILL +++")
    _conclude(world, outcome, victim)


def _conclude(world: World, outcome: Outcome, victim: Process) -> None:
    job = outcome.point.scenario.job
    if outcome.hit and outcome.died:
        world.losses.killed(victim.who, set())
    world.gate(job, is_open=True)
    world.restore()
    if not world.is_over(job) and job.state == "stopped":
        world.order("stop", job)
    world.await_end(job)
    row = world.row(job)
    outcome.run, outcome.state, outcome.reason = row["run"], row["state"], row["reason"]
    keys = {(row["run"], job.name, number) for number in range(1, row["attempt"] + 1)}
    if outcome.hit and outcome.died and outcome.point.scenario.victim == SHIM:
        world.losses.killed(victim.who, keys, keys if is_nameless(outcome.calls) else ())
    if may_tear(outcome):
        world.losses.torn |= keys
    if row["state"] not in (job.state, "lost"):
        outcome.problems.append(f"[outcome] is {row['state']} ({row['reason']}), should be {job.state}")
    if row["attempt"] != 1:
        outcome.problems.append(f"[consumed] {row['attempt']} attempts")
    with contextlib.suppress(BrokenError):
        world.until("no process of it lives", 0.0, lambda: not world.look().jobs)
        return
    outcome.problems.append(
        f"[alive] it is {row['state']}, and lives: {[key for _, key in world.look().jobs.values()]}"
    )


def may_drop(point: Point) -> bool:
    """Whether the log could not be written for a moment: its text is dropped and counted."""
    call = point.fault.call if point.fault else ""
    return point.kind == "errors" and (call in ("splice", "mkdir") or "/logs/" in point.at)


def may_tear(outcome: Outcome) -> bool:
    """Whether nobody was left who had the FIFO open: what nobody has read of it is gone.

    So it is if a shim is killed whose job has ended, and perhaps it does not know yet; or a shim and the forkserver
    above it. If another shim was killed before, the forkserver has it open.
    """
    scenario = outcome.point.scenario
    if scenario.victim == SHIM:
        return outcome.hit and outcome.died and not scenario.name.startswith("takeover")
    return scenario.name == "jobd-reaps" or (scenario.name == "orphan-ends" and outcome.hit and outcome.died)


def is_nameless(calls: list[Call]) -> bool:
    """Whether a shim was killed between the mark `begun` in its record and the main process's pid there.

    Nobody else knows whether that process was made, or which it is. The record is written when it is taken, when
    it is marked, when the process is there, and later.
    """
    return sum(call.name == "pwrite64" and call.done for call in calls) == WRITES_UNTIL_BEGUN
