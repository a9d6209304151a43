"""The pool of shims, and what an executor finds out about attempts that it cannot see. Real processes throughout."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor import pool, process_tree, record
from supervisor.core.events import Cause, Exited, Halt, NotStarted, Started

from .process_helpers import World, descriptors_of, lives, parent_of, state_of, until

BOOT = process_tree.boot_id()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.clean_up()


def shim_of(world: World, attempt: int) -> int:
    world.hear(Started, attempt)
    shim = world.record(attempt)["shim"]
    assert isinstance(shim, int)
    return shim


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def left_behind(world: World) -> list[str]:
    return [path.name for folder in ("attempts", "fifos") for path in (world.state_dir / folder).iterdir()]


# ---- the pool ------------------------------------------------------------------------------------


def test_one_shim_serves_one_attempt_after_another(world: World) -> None:
    shims = set()
    for attempt in range(1, 21):
        world.start("true", attempt)
        world.end(attempt)
        shims.add(world.record(attempt)["shim"])
        world.executor.forget(attempt)
    assert len(shims) == 1


def test_records_stay_until_they_are_forgotten(world: World) -> None:
    for attempt, code in ((1, 3), (2, 4), (3, 5)):
        world.start(f"exit {code}", attempt)
        world.end(attempt)
    assert [world.record(attempt)["ending"]["exit_code"] for attempt in (1, 2, 3)] == [3, 4, 5]
    for attempt in (1, 2, 3):
        world.executor.forget(attempt)
    assert not list((world.state_dir / "attempts").glob("*.json"))


def test_few_idle_shims_are_kept(world: World) -> None:
    attempts = [world.start("while [ ! -e go ]; do sleep 0.02; done") for _ in range(pool.POOL_KEEP + 5)]
    server = parent_of(shim_of(world, attempts[0]))
    for attempt in attempts:
        world.hear(Started, attempt)
    assert len(children_of(server)) == pool.POOL_KEEP + 5
    (world.state_dir / "go").touch()
    for attempt in attempts:
        world.end(attempt)
    world.turn_until(lambda: len(children_of(server)) == pool.POOL_KEEP)


def test_many_at_once(world: World) -> None:
    attempts = [world.start("exit 2") for _ in range(400)]
    assert all(world.end(attempt).exit_code == 2 for attempt in attempts)


def test_nothing_is_left_open_after_a_thousand_attempts(world: World) -> None:
    def run(count: int) -> None:
        for _ in range(count):
            attempt = world.start("true")
            world.end(attempt)
            world.executor.forget(attempt)

    run(20)
    attempt = world.start("true")
    shim = shim_of(world, attempt)
    world.end(attempt)
    world.executor.forget(attempt)
    processes = (os.getpid(), shim, parent_of(shim))
    before = [descriptors_of(pid) for pid in processes]
    run(1000)
    assert [descriptors_of(pid) for pid in processes] == before
    assert not children_of(shim)
    assert len(left_behind(world)) == 2  # the shim's own record slot and FIFO


# ---- what cannot be started now, but later ---------------------------------------------------------


def test_no_descriptors_left_is_not_the_jobs_fault(world: World) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        attempt = world.start("true")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "no shim can be made" in world.hear(NotStarted, attempt).reason


def test_an_unwritable_state_directory_is_not_the_jobs_fault(world: World) -> None:
    world.run("true")
    (world.state_dir / "attempts").rename(world.state_dir / "elsewhere")
    attempt = world.start("true")
    assert "state directory" in world.hear(NotStarted, attempt).reason
    (world.state_dir / "elsewhere").rename(world.state_dir / "attempts")
    assert world.run("exit 3").exit_code == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root is not bound by a limit of processes")
def test_a_failing_fork_is_not_the_jobs_fault(world: World) -> None:
    attempt = world.start("sleep 1000")
    server = parent_of(shim_of(world, attempt))
    limits = resource.prlimit(server, resource.RLIMIT_NPROC, (0, 0))
    assert limits
    failing = world.start("true")
    assert "fork failed" in world.hear(NotStarted, failing).reason


def test_removed_files_are_made_again(world: World) -> None:
    assert world.run("exit 3").exit_code == 3
    for path in (world.state_dir / "fifos").iterdir():
        path.unlink()
    assert world.run("exit 4").exit_code == 4
    shutil.rmtree(world.state_dir / "logs")
    assert world.run("echo hello; exit 5").exit_code == 5


def test_a_reason_that_is_no_unicode(world: World) -> None:
    folder = os.fsdecode(bytes(world.state_dir) + b"/\xff")
    os.mkdir(folder)  # noqa: PTH102
    (world.state_dir / "link").symlink_to(folder)
    ending = world.run(("./missing",), dir=str(world.state_dir / "link"))
    assert ending.cause is Cause.UNSTARTABLE
    assert ending.text.isprintable()
    ending.text.encode()


# ---- processes of ours that die ------------------------------------------------------------------


def test_a_killed_idle_shim_is_replaced(world: World) -> None:
    world.run("true")
    shim = world.record(1)["shim"]
    os.kill(shim, signal.SIGKILL)
    until(lambda: not lives(shim))
    assert world.run("exit 3").exit_code == 3


def test_a_stopped_shim_still_hears_a_stop(world: World) -> None:
    attempt = world.start("sleep 1000")
    shim = shim_of(world, attempt)
    os.kill(shim, signal.SIGSTOP)
    until(lambda: state_of(shim) == "T")
    world.halt(attempt, Halt.STOP)
    assert world.end(attempt).cause is Cause.STOPPED


def test_a_killed_forkserver_harms_nobody(world: World) -> None:
    old = world.start("while [ ! -e go ]; do sleep 0.02; done; exit 4")
    server = parent_of(shim_of(world, old))
    os.kill(server, signal.SIGKILL)
    until(lambda: not lives(server))
    new = [world.start(f"exit {code}") for code in (5, 6, 7)]
    assert [world.end(attempt).exit_code for attempt in new] == [5, 6, 7]
    (world.state_dir / "go").touch()
    assert world.end(old).exit_code == 4


def test_terminal_and_service_manager_signals_end_no_idle_shim(world: World) -> None:
    world.run("true")
    shim = world.record(1)["shim"]
    for pid in (shim, parent_of(shim)):
        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, signum)
    assert world.run("exit 3").exit_code == 3
    assert world.record(2)["shim"] == shim


def test_term_to_a_busy_shim_is_a_stop(world: World) -> None:
    attempt = world.start("sleep 1000")
    os.kill(shim_of(world, attempt), signal.SIGTERM)
    ending = world.end(attempt)
    assert (ending.cause, ending.signal) == (Cause.STOPPED, signal.SIGTERM)


# ---- a daemon that comes back --------------------------------------------------------------------


def successor(world: World) -> World:
    """The daemon leaves, the next one comes."""
    world.leave()
    return World(world.state_dir)


def test_a_running_attempt_is_adopted(world: World) -> None:
    attempt = world.start("while [ ! -e go ]; do sleep 0.02; done; echo done; exit 4")
    pid = world.hear(Started, attempt).pid
    after = successor(world)
    after.executor.recover({attempt: BOOT})
    assert after.hear(Started, attempt).pid == pid
    assert after.executor.pid_of(attempt) == pid
    (world.state_dir / "go").touch()
    ending = after.end(attempt)
    assert (ending.cause, ending.exit_code) == (Cause.EXITED, 4)
    assert after.log(attempt) == "done\n"
    after.executor.forget(attempt)
    after.leave()
    until(lambda: not left_behind(after))


@pytest.mark.parametrize(
    ("how", "cause", "signum"),
    [(Halt.STOP, Cause.STOPPED, 15), (Halt.KILL, Cause.STOPPED, 9), (Halt.WIND_DOWN, Cause.EXITED, 15)],
)
def test_an_adopted_attempt_can_be_ended(world: World, how: Halt, cause: Cause, signum: int) -> None:
    attempt = world.start("exec sleep 1000", stop_timeout_s=0.1)
    world.hear(Started, attempt)
    after = successor(world)
    after.executor.recover({attempt: BOOT})
    after.hear(Started, attempt)
    after.halt(attempt, how)
    ending = after.end(attempt)
    assert (ending.cause, ending.signal) == (cause, signum)
    after.clean_up()


def test_an_attempt_that_ended_in_the_gap_is_told_once(world: World) -> None:
    attempt = world.start("while [ ! -e go ]; do sleep 0.02; done; exit 4")
    server = parent_of(shim_of(world, attempt))
    world.leave()
    (world.state_dir / "go").touch()
    until(lambda: not lives(server))
    after = World(world.state_dir)
    after.executor.recover({attempt: BOOT})
    assert after.end(attempt).exit_code == 4
    assert len(after.of(attempt)) == 1
    after.clean_up()


def test_an_attempt_that_never_began_is_given_up_for_good(world: World) -> None:
    world.executor.recover({7: BOOT})
    world.hear(NotStarted, 7)
    world.start("touch ran", 7)  # as a late shim would
    world.turn_until(lambda: len(world.of(7)) == 2)
    assert all(isinstance(event, NotStarted) for event in world.of(7))
    assert not (world.state_dir / "ran").exists()


def test_a_start_that_the_daemon_leaves_behind_runs_wholly_or_never(world: World) -> None:
    """Whatever the next daemon says, it is true: also when it forgets at once, and the old shim comes late."""
    current, ran, told = world, world.state_dir / "ran", []
    for attempt in range(1, 31):
        current.start(f"echo {attempt} >> {ran}", attempt)
        if attempt % 3:
            current.loop.turn(0.0)
        current = successor(current)
        current.executor.recover({attempt: BOOT})
        current.turn_until(lambda: any(not isinstance(e, Started) for e in current.of(attempt)))  # noqa: B023
        told += [event.attempt_id for event in current.of(attempt) if isinstance(event, Exited)]
        current.executor.forget(attempt)
    current.leave()
    until(lambda: not left_behind(current))
    assert (sorted(map(int, ran.read_text().split())) if ran.exists() else []) == told


def test_an_attempt_of_an_earlier_boot_is_lost(world: World) -> None:
    attempt = world.start("sleep 1000")
    shim_of(world, attempt)
    kept = world.record(attempt)
    (world.state_dir / "attempts/99.json").write_text(record._to_json({**kept, "boot": "another"}))
    world.executor.recover({99: BOOT})
    ending = world.end(99)
    assert ending.cause is Cause.LOST
    assert "the machine went down" in ending.text


def test_a_reused_pid_is_not_adopted(world: World) -> None:
    attempt = world.start("sleep 1000")
    shim_of(world, attempt)
    kept = world.record(attempt)
    stranger = process_tree.myself()
    forged = {
        **kept,
        "shim": stranger[0],
        "shim_start": stranger[1] - 1,
        "env": {"JOBD_RUN": "another"},
        "fifo": "1-1",
        "pid": None,
        "terms": {**kept["terms"], "attempt": 99},
    }
    (world.state_dir / "attempts/99.json").write_bytes(record._encode(forged) + record._BEGUN)
    world.executor.recover({99: BOOT})
    assert world.end(99).cause is Cause.LOST


def test_a_damaged_record_is_named(world: World) -> None:
    (world.state_dir / "attempts/99.json").write_text("{")
    world.executor.recover({99: BOOT})
    ending = world.end(99)
    assert ending.cause is Cause.LOST
    assert "attempts/99.json" in ending.text


def test_after_leaving_the_helpers_go(world: World) -> None:
    world.run("true")
    shim = world.record(1)["shim"]
    server = parent_of(shim)
    world.leave()
    until(lambda: not lives(shim) and not lives(server))
    assert left_behind(world) == ["1.json"]


#: Keys that records did not have before shims could be taken over.
NEWER_KEYS = ("forkserver", "began_at", "terms", "env", "begun", "pid_start")


def test_a_shim_of_an_older_version_is_adopted(world: World) -> None:
    attempt = world.start("while [ ! -e go ]; do sleep 0.02; done; exit 4")
    shim_of(world, attempt)
    kept = world.record(attempt)
    world.leave()
    (world.state_dir / "attempts/9.json").write_text(
        record._to_json({name: value for name, value in kept.items() if name not in NEWER_KEYS})
    )
    after = World(world.state_dir)
    after.executor.recover({9: None})
    assert after.hear(Started, 9).pid == kept["pid"]
    (world.state_dir / "go").touch()
    assert after.end(9).cause is Cause.LOST  # its shim wrote into its own record; this is only a copy of the keys
    after.leave()


def test_a_killed_shim_of_an_older_version_is_never_taken_for_one_that_started_nothing(world: World) -> None:
    attempt = world.start("true")
    world.end(attempt)
    kept = world.record(attempt)
    old = {name: value for name, value in kept.items() if name not in NEWER_KEYS}
    old |= {"shim_start": kept["shim_start"] - 1, "ending": None}
    (world.state_dir / "attempts/9.json").write_text(record._to_json(old))
    world.executor.recover({9: None})
    assert world.end(9).cause is Cause.LOST
