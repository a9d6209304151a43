"""The steps of an attempt's life: start, finish, stop, takeover, adoption; and which process is at fault in each.

A scenario is a generator. What stands before its `yield` arranges things, with all processes healthy; it yields
the process that is to be faulted; what stands after is done while that one is traced, and must go on whatever
becomes of it. The sweep then restores a healthy jobd and sees how the job ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.crash.family import Process, find
from tests.sweep.dags import JOBS, Job
from tests.sweep.tracing import Fault
from tests.sweep.world import World

JOBD, FORKSERVER, SHIM = "jobd", "forkserver", "shim"

Play = Callable[[World, Job], Generator[Process, None, None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`victim`: kind of the process at fault. `idle`: shims that wait in the pool at the beginning, 0 or 1.

    `begins`: the victim is the shim that begins the attempt. `is_start`: it is traced from its exec on.
    `inherits`: the victim is above a killed shim and may have to note how its job has ended.
    """

    name: str
    victim: str
    job: Job
    play: Play
    idle: int = 1
    begins: bool = False
    inherits: bool = False
    is_start: bool = False

    def __str__(self) -> str:
        return f"{self.name}/{self.victim}"


class Choice(NamedTuple):
    """How a victim is found when it is its turn."""

    kind: str
    find: Callable[[World], Process]


def _jobd(world: World) -> Process:
    assert world.jobd is not None
    found = find(world.jobd.pid)
    assert found
    return found


_THE_JOBD = Choice(JOBD, _jobd)
_THE_FORKSERVER = Choice(FORKSERVER, World.forkserver)
_IDLE_SHIM = Choice(SHIM, World.idle_shim)
_BUSY_SHIM = Choice(SHIM, World.busy_shim)


# ---- start and finish ------------------------------------------------------------------------------


def _run(choice: Choice) -> Play:
    def play(world: World, job: Job) -> Generator[Process, None, None]:
        yield choice.find(world)
        world.order("restart", job)
        world.await_end(job)

    return play


def _run_with_leftovers(choice: Choice) -> Play:
    """The main process ends long before the attempt does."""

    def play(world: World, job: Job) -> Generator[Process, None, None]:
        before = world.count(job, "exits")
        yield choice.find(world)
        world.order("restart", job)
        world.meanwhile(lambda: world.count(job, "exits") > before)
        world.await_pause()
        world.gate(job, is_open=True)
        world.await_end(job)

    return play


# ---- stop ------------------------------------------------------------------------------------------


def _stop(choice: Choice, *, now: bool = False) -> Play:
    def play(world: World, job: Job) -> Generator[Process, None, None]:
        world.begin(job, "deaf" if job.name == "deaf" else "began")
        yield choice.find(world)
        world.order("stop", job, **({"now": True} if now else {}))
        world.await_end(job)

    return play


# ---- jobd goes, the shim is alone ------------------------------------------------------------------


def _leave(world: World, job: Job) -> Generator[Process, None, None]:
    """TERM while a job runs."""
    world.begin(job)
    yield _jobd(world)
    world.ask_to_leave()
    world.meanwhile(world.has_gone)


def _end_alone(world: World, job: Job) -> Generator[Process, None, None]:
    world.begin(job)
    shim = world.busy_shim()
    world.kill_jobd()
    yield shim
    world.gate(job, is_open=True)
    world.meanwhile(lambda: False)  # it leaves in the end


def _stop_adopted(choice: Choice) -> Play:
    def play(world: World, job: Job) -> Generator[Process, None, None]:
        world.begin(job)
        world.kill_jobd()
        world.restore()
        world.until("it is adopted", 10, lambda: world.row(job)["pid"] is not None)
        yield choice.find(world)
        world.order("stop", job)
        world.await_end(job)

    return play


# ---- a shim is killed ------------------------------------------------------------------------------


def _take_over(choice: Choice, *, stop: bool = False) -> Play:
    def play(world: World, job: Job) -> Generator[Process, None, None]:
        world.begin(job)
        old = world.busy_shim()
        world.add_idle_shim()
        victim = choice.find(world)
        yield victim
        world.kill(old)
        if choice.kind == FORKSERVER:
            world.until("it is taken over", 10, lambda: not world.family.attempts_of(old.who))
        else:
            world.await_reaped(old)
            world.meanwhile(lambda: not world.family.attempts_of(old.who))
        if stop:
            world.order("stop", job)
        world.gate(job, is_open=True)
        world.await_end(job)

    return play


def _orphan_ends(choice: Choice) -> Play:
    """The shim is killed while there is no jobd, and the job ends: the forkserver alone can see how."""

    def play(world: World, job: Job) -> Generator[Process, None, None]:
        world.begin(job)
        shim = world.busy_shim()
        world.kill_jobd()
        yield choice.find(world)
        world.kill(shim)
        world.meanwhile(lambda: find(shim.who.pid) is None)
        world.gate(job, is_open=True)
        world.meanwhile(lambda: False)  # it leaves in the end

    return play


def _jobd_reaps(world: World, job: Job) -> Generator[Process, None, None]:
    """The forkserver and the shim are killed, and the job ends: jobd alone can see how."""
    world.begin(job)
    shim, forkserver = world.busy_shim(), world.forkserver()
    yield _jobd(world)
    world.kill(forkserver)
    world.kill(shim)
    world.gate(job, is_open=True)
    world.await_end(job)


# ---- the next jobd ---------------------------------------------------------------------------------


def _adopt(*, ended: bool = False, orphaned: bool = False, stopping: bool = False) -> Play:
    """A fresh jobd finds an attempt that runs, or has ended, or whose shim was killed, or that is to be stopped."""

    def play(world: World, job: Job) -> Generator[Process, None, None]:
        world.begin(job)
        shim = world.busy_shim()
        if stopping:
            os.kill(shim.who.pid, signal.SIGSTOP)  # so that it cannot obey at once
            world.order("stop", job)
        world.kill_jobd()
        if orphaned:
            world.kill(shim)
            world.await_reaped(shim)
        if ended:
            world.gate(job, is_open=True)
            world.await_exit(shim)
        yield from _start_jobd(world, job)

    return play


def _start_again(fault: Fault) -> Play:
    """The last jobd was killed at a place of its own: an attempt was decided, and not started."""

    def play(world: World, job: Job) -> Generator[Process, None, None]:
        victim = _jobd(world)
        with world.tracing(victim.who.pid, fault):
            world.order("restart", job)
        world.until("jobd is killed", 10, world.has_gone)
        world.losses.killed(victim.who, set())
        yield from _start_jobd(world, job)

    return play


def _start_jobd(world: World, job: Job) -> Generator[Process, None, None]:
    world.launch_waiting()
    yield _jobd(world)
    world.let_go()
    if world.await_service():
        world.gate(job, is_open=True)
        world.await_end(job)


_RUNS = {
    "run": "quick",
    "run-forked": "forked",
    "run-flood": "flood",
    "run-finish-main": "mainly",
    "run-timeout": "late",
}


def _all() -> Iterator[Scenario]:
    quick, gated, hang = JOBS["quick"], JOBS["gated"], JOBS["hang"]
    yield Scenario("run", JOBD, quick, _run(_THE_JOBD))
    for choice in (_THE_JOBD, _THE_FORKSERVER):
        yield Scenario("first-run", choice.kind, quick, _run(choice), idle=0)
    for name, job in _RUNS.items():
        yield Scenario(name, SHIM, JOBS[job], _run(_IDLE_SHIM), begins=True)
    yield Scenario("run-leftovers", SHIM, JOBS["leaver"], _run_with_leftovers(_IDLE_SHIM), begins=True)
    for choice in (_THE_JOBD, _BUSY_SHIM):
        yield Scenario("stop", choice.kind, hang, _stop(choice))
        yield Scenario("stop-now", choice.kind, hang, _stop(choice, now=True))
        yield Scenario("stop-adopted", choice.kind, hang, _stop_adopted(choice))
    yield Scenario("stop-deaf", SHIM, JOBS["deaf"], _stop(_BUSY_SHIM))
    yield Scenario("leave", JOBD, gated, _leave)
    yield Scenario("end-alone", SHIM, gated, _end_alone)
    for choice in (_THE_JOBD, _THE_FORKSERVER, _IDLE_SHIM):
        is_heir = choice is not _IDLE_SHIM
        yield Scenario("takeover", choice.kind, gated, _take_over(choice), inherits=is_heir)
        yield Scenario("takeover-stop", choice.kind, hang, _take_over(choice, stop=True), inherits=is_heir)
    yield Scenario("orphan-ends", FORKSERVER, gated, _orphan_ends(_THE_FORKSERVER), inherits=True)
    yield Scenario("jobd-reaps", JOBD, gated, _jobd_reaps, inherits=True)
    yield Scenario("adopt", JOBD, gated, _adopt(), is_start=True)
    yield Scenario("adopt-ended", JOBD, gated, _adopt(ended=True), is_start=True)
    yield Scenario("adopt-orphan", JOBD, gated, _adopt(orphaned=True), is_start=True)
    yield Scenario("adopt-stopping", JOBD, hang, _adopt(stopping=True), is_start=True)
    yield Scenario("start-again", JOBD, quick, _start_again(Fault("sendto", 1)), is_start=True)


SCENARIOS = {str(scenario): scenario for scenario in _all()}
