"""The sweep itself: what is done at each point, and what was found there."""

from __future__ import annotations

import itertools
import shutil
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.family import Process
from tests.crash.invariants import Violation
from tests.sweep.points import Point, points_of
from tests.sweep.scenarios import SHIM, Scenario
from tests.sweep.tracing import Call
from tests.sweep.world import BrokenError, World, is_gone

#: A world is given up after so many points, so that little has to be looked at if it was wrong in the end.
POINTS_PER_WORLD = 40
#: They make a process.
FORKS = frozenset({"clone", "clone3", "fork", "vfork"})
#: A shim writes to its record so often until it says `begun`; the next time it tells the main process's pid.
WRITES_UNTIL_BEGUN = 2


@dataclass(slots=True)
class Outcome:
    """What became of one point. Not `hit`: the call never came. `run`: the run that it was about."""

    point: Point
    calls: list[Call] = field(default_factory=list)
    hit: bool = False
    died: bool = False
    state: str = ""
    run: str = ""
    took_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def injected(self) -> list[Call]:
        """Calls that returned an error of ours."""
        return [call for call in self.calls if "(INJECTED)" in call.text]

    @property
    def ran(self) -> bool:
        """Whether a shim that was to begin the attempt has made a process."""
        return any(call.name in FORKS and call.done for call in self.calls)


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
        elif not ALLOWED.get(violation.kind, _never)(concerned):
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
    job, orders_before = scenario.job, len(world.operator.orders)
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
    outcome.hit = bool(outcome.injected)
    world.removal_failed |= any(call.name == "unlink" for call in outcome.injected)
    if outcome.point.kind == "kills":
        outcome.hit = outcome.died = tracer.saw("+++ killed by SIGKILL +++")
    if outcome.hit and outcome.died:
        world.losses.killed(victim.who, set())
    world.gate(job, is_open=True)
    world.restore()
    is_stopped = any(order.method == "stop" and order.done for order in world.operator.orders[orders_before:])
    if job.state == "stopped" and not is_stopped:
        world.order("stop", job)  # there was nobody who could take it
    world.await_end(job)
    _examine(world, outcome, victim)


def _examine(world: World, outcome: Outcome, victim: Process) -> None:
    """What can be said of one point at once; the invariants are for the end of the world."""
    job = outcome.point.scenario.job
    row = world.row(job)
    outcome.run, outcome.state = row["run"], row["state"]
    keys = {(row["run"], job.name, number) for number in range(1, row["attempt"] + 1)}
    if outcome.hit and outcome.died and outcome.point.scenario.victim == SHIM:
        world.losses.killed(victim.who, keys, keys if is_nameless(outcome) else ())
    if may_tear(outcome):
        world.losses.torn |= keys
    if row["state"] not in (job.state, "lost"):
        outcome.problems.append(f"[outcome] is {row['state']} ({row['reason']}), should be {job.state}")
    if row["attempt"] != 1:
        outcome.problems.append(f"[consumed] {row['attempt']} attempts")
    if left := [f"{key} pid {process.who.pid}" for process, key in world.look().jobs.values()]:
        outcome.problems.append(f"[alive] it is {row['state']}, and lives: {left}")


def may_drop(outcome: Outcome) -> bool:
    """Whether the log could not be written for a moment: its text is dropped and counted."""
    on_the_way = ("O_PATH", '.log"')  # to the log, folder by folder
    return any(
        call.name in ("splice", "mkdir", "mkdirat") or any(word in call.text for word in on_the_way)
        for call in outcome.injected
    )


def may_lose(outcome: Outcome) -> bool:
    """Whether the one who reaped the main process in a killed shim's place could not note how it had ended."""
    return outcome.point.kind == "errors" and outcome.point.scenario.inherits


def may_tear(outcome: Outcome) -> bool:
    """Whether nobody was left who had the FIFO open: what nobody has read of it is gone.

    So it is if a shim is killed whose job has ended, and perhaps it does not know yet; or a shim and the forkserver
    above it. If another shim was killed before, the forkserver has it open.
    """
    scenario = outcome.point.scenario
    if scenario.victim == SHIM:
        return outcome.hit and outcome.died and not scenario.name.startswith("takeover")
    return scenario.name == "jobd-reaps" or (scenario.name == "orphan-ends" and outcome.hit and outcome.died)


def is_nameless(outcome: Outcome) -> bool:
    """Whether a shim was killed between the mark `begun` in its record and the main process's pid there.

    Nobody else knows whether that process was made, or which it is.
    """
    writes = sum(call.name == "pwrite64" and call.done for call in outcome.calls)
    return outcome.point.scenario.begins and writes == WRITES_UNTIL_BEGUN


def _never(_outcome: Outcome) -> bool:
    return False


#: What may be wrong after an error, by kind of violation.
ALLOWED = {"log": may_drop, "lost": may_lose}
