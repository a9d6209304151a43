"""Shims that are killed: the attempt goes on in another one's hands. Real processes throughout."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor import process_tree
from supervisor.core.events import Cause, Exited, Halt, NotStarted, Started
from supervisor.core.model import Finish

from .process_helpers import World, lives, parent_of, processes_with, state_of, until

BOOT = process_tree.boot_id()
WAIT_FOR_GO = "while [ ! -e go ]; do sleep 0.02; done"


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


def kill(*pids: int) -> None:
    """All at once, and see them dead."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that none sees another one die
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        until(lambda: not lives(pid))  # noqa: B023


def take_over(world: World, attempt: int) -> int:
    """Kill the shim of the attempt and wait until another has taken over; that one's pid."""
    old = shim_of(world, attempt)
    kill(old)
    world.turn_until(lambda: world.record(attempt)["shim"] != old)
    return shim_of(world, attempt)


def left_behind(world: World) -> list[str]:
    return [path.name for folder in ("attempts", "fifos") for path in (world.state_dir / folder).iterdir()]


def only_one_ending(world: World, attempt: int) -> bool:
    return [type(event) for event in world.of(attempt)] == [Started, Exited]


@pytest.mark.parametrize(
    ("command", "code", "signum"), [("exit 0", 0, None), ("exit 7", 7, None), ("kill -SEGV $$", None, 11)]
)
def test_the_job_goes_on_and_its_status_is_true(world: World, command: str, code: int, signum: int) -> None:
    attempt = world.start(f"echo before; {WAIT_FOR_GO}; echo after; {command}")
    take_over(world, attempt)
    (world.state_dir / "go").touch()
    ending = world.end(attempt)
    assert (ending.cause, ending.exit_code, ending.signal) == (Cause.EXITED, code, signum)
    assert world.log(attempt) == "before\nafter\n"
    assert only_one_ending(world, attempt)


def test_a_status_from_before_the_takeover_counts(world: World) -> None:
    attempt = world.start(f"{WAIT_FOR_GO}; exit 5")
    shim = shim_of(world, attempt)
    kill(shim)
    (world.state_dir / "go").touch()
    until(lambda: world.record(attempt).get("main_exit"))  # nobody has looked at the loop meanwhile
    ended_at = world.record(attempt)["main_exit"]["at"]
    ending = world.end(attempt)
    assert (ending.exit_code, ending.finished_at) == (5, ended_at)


def test_all_output_is_kept_over_takeovers(world: World) -> None:
    lines = 60_000
    attempt = world.start(f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo $i; done")
    for _ in range(5):
        take_over(world, attempt)
    world.end(attempt)
    assert world.log(attempt) == "".join(f"{i}\n" for i in range(1, lines + 1))


def test_log_max_holds_over_takeovers(world: World) -> None:
    attempt = world.start(f"head -c 600 /dev/zero; {WAIT_FOR_GO}; head -c 600 /dev/zero", log_max_bytes=1000)
    shim_of(world, attempt)
    until(lambda: world.log_path(attempt).stat().st_size == 600)
    take_over(world, attempt)
    (world.state_dir / "go").touch()
    assert world.end(attempt).log_dropped_bytes == 200
    assert world.log(attempt).count("\0") == 1000


def test_leftovers_count_and_the_main_status_decides(world: World) -> None:
    attempt = world.start(f"(trap '' HUP; setsid sh -c '{WAIT_FOR_GO}; echo last' &) ; exit 3")
    shim = shim_of(world, attempt)
    kill(shim)
    until(lambda: world.record(attempt).get("main_exit"))
    world.turn_until(lambda: world.record(attempt)["shim"] != shim)
    (world.state_dir / "go").touch()
    assert world.end(attempt).exit_code == 3
    assert world.log(attempt) == "last\n"


def test_finish_main_ends_the_leftovers(world: World) -> None:
    mark = f"MARK={world.state_dir}"
    attempt = world.start(f"sleep 1000 & {WAIT_FOR_GO}; exit 3", finish=Finish.MAIN, env={"MARK": str(world.state_dir)})
    take_over(world, attempt)
    assert processes_with(mark)
    (world.state_dir / "go").touch()
    assert world.end(attempt).exit_code == 3
    assert not processes_with(mark)


HARD_TO_KILL = {
    "plain": "sleep 1000",
    "ignores TERM": "trap '' TERM; while :; do sleep 1000; done",
    "double fork": "(setsid sh -c 'setsid sleep 1000 & sleep 1000' >/dev/null 2>&1 &) ; sleep 1000",
    "empty environment": "env -i setsid sleep 1000 & sleep 1000",
    "nothing inherited": "(env -i setsid sleep 1000 >/dev/null 2>&1 &) ; sleep 1000",
    "closed output": "exec >/dev/null 2>&1; sleep 1000 & wait",
    "stopped": "sleep 1000 & kill -STOP $!; kill -STOP $$",
}


@pytest.mark.parametrize("how", [Halt.STOP, Halt.KILL])
@pytest.mark.parametrize("command", HARD_TO_KILL.values(), ids=HARD_TO_KILL.keys())
def test_stop_reaches_all_of_it(world: World, command: str, how: Halt) -> None:
    mark = str(1_000_000 + os.getpid())  # a time to sleep that nobody else has
    attempt = world.start(command.replace("1000", mark), stop_timeout_s=0.2)
    until(lambda: sleepers(mark))
    take_over(world, attempt)
    world.halt(attempt, how)
    assert world.end(attempt).cause is Cause.STOPPED
    assert not sleepers(mark)
    assert not processes_with(f"JOBD_SOCKET={world.state_dir}")


def sleepers(mark: str) -> list[str]:
    """Living processes with this text among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path.parent.name] if mark.encode() in path.read_bytes() else []
        except OSError:
            pass  # it has just ended
    return found


def test_a_chain_of_forks_is_ended(world: World) -> None:
    script = world.state_dir / "chain.sh"
    script.write_text('#!/bin/sh\n"$0" &\n')
    script.chmod(0o755)
    attempt = world.start(f"{script}; sleep 1000")
    take_over(world, attempt)
    world.halt(attempt, Halt.KILL)
    assert world.end(attempt).cause is Cause.STOPPED
    assert not processes_with(f"JOBD_SOCKET={world.state_dir}")


def test_a_stop_that_the_killed_shim_had_heard_goes_on(world: World) -> None:
    attempt = world.start("trap '' TERM; while :; do sleep 1000; done", stop_timeout_s=0.5)
    shim = shim_of(world, attempt)
    world.halt(attempt, Halt.STOP)
    until(lambda: world.record(attempt).get("cause") == "stopped")
    kill(shim)
    assert world.end(attempt).cause is Cause.STOPPED


def test_timeout_is_counted_from_the_start(world: World) -> None:
    attempt = world.start("sleep 1000", timeout_s=0.7)
    take_over(world, attempt)
    ending = world.end(attempt)
    assert ending.cause is Cause.TIMEOUT
    assert ending.duration_s is not None
    assert ending.duration_s >= 0.7


def test_a_job_that_ended_before_its_timeout_has_not_timed_out(world: World) -> None:
    attempt = world.start("exit 4", timeout_s=0.5, env={"A": "1"})
    busy = world.start(f"{WAIT_FOR_GO}; exit 4", timeout_s=0.6)
    world.end(attempt)
    shim = shim_of(world, busy)
    kill(shim)
    (world.state_dir / "go").touch()
    until(lambda: world.record(busy).get("main_exit"))
    began_at = world.record(busy)["began_at"]
    until(lambda: time.monotonic() > began_at + 0.6)
    assert world.end(busy).exit_code == 4


def test_nobody_saw_it(world: World) -> None:
    """Shim and forkserver killed at once, and this process is no subreaper: the outcome is lost, never guessed."""
    attempt = world.start(f"{WAIT_FOR_GO}; exit 0")
    shim, main = shim_of(world, attempt), world.hear(Started, attempt).pid
    kill(parent_of(shim), shim)
    (world.state_dir / "go").touch()
    until(lambda: state_of(main) is None)  # and the loop does not turn meanwhile
    ending = world.end(attempt)
    assert ending.cause is Cause.LOST
    assert "its shim was killed" in ending.text


def test_the_kernel_tells_how_a_zombie_ended(world: World) -> None:
    """Whoever is its parent, and whether that one ever reaps it."""
    child = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], dict(os.environ))
    until(lambda: state_of(child) == "Z")
    found = process_tree.identity(child)
    assert found
    assert process_tree.status_of_zombie(*found) == {"exit_code": 7}
    os.waitpid(child, 0)
    assert process_tree.status_of_zombie(*found) is None


def test_others_are_unharmed(world: World) -> None:
    killed, *others = [world.start(f"{WAIT_FOR_GO}; exit {code}") for code in (1, 2, 3)]
    for attempt in others:
        shim_of(world, attempt)
    shim = shim_of(world, killed)
    kill(parent_of(shim), shim)
    canary = os.posix_spawn("/bin/sleep", ["sleep", "1000"], dict(os.environ), setsid=True)
    try:
        world.halt(killed, Halt.KILL)
        assert world.end(killed).cause is Cause.STOPPED
        (world.state_dir / "go").touch()
        assert [world.end(attempt).exit_code for attempt in others] == [2, 3]
        assert state_of(canary) == "S"
    finally:
        os.kill(canary, signal.SIGKILL)
        os.waitpid(canary, 0)


def test_a_shim_whose_forkserver_had_died_leaves_no_claim_on_its_successor(world: World) -> None:
    """The other job's shim is below the new forkserver, which is nobody's stray."""
    world.run("true")  # a shim that waits in the pool
    shim = world.record(1)["shim"]
    kill(parent_of(shim))
    first = world.start("sleep 1000", stop_timeout_s=0.2)
    assert shim_of(world, first) == shim
    other = world.start(f"{WAIT_FOR_GO}; exit 3")
    take_over(world, first)
    shim_of(world, other)
    world.halt(first, Halt.STOP)
    assert world.end(first).cause is Cause.STOPPED
    (world.state_dir / "go").touch()
    assert world.end(other).exit_code == 3


def test_who_has_only_a_copy_of_the_environment_is_a_stranger(world: World) -> None:
    attempt = world.start("sleep 1000")
    main = world.hear(Started, attempt).pid
    copy = dict(entry.split("=", 1) for entry in Path(f"/proc/{main}/environ").read_text().rstrip("\0").split("\0"))
    stranger = os.posix_spawn("/bin/sleep", ["sleep", "1000"], copy)
    try:
        take_over(world, attempt)
        world.halt(attempt, Halt.STOP)
        assert world.end(attempt).cause is Cause.STOPPED
        assert state_of(stranger) == "S"
    finally:
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)


def test_a_stray_that_may_be_anothers_is_left_alone(world: World) -> None:
    mark = str(2_000_000 + os.getpid())
    one = world.start(
        f"(env -i setsid sleep {mark} >/dev/null 2>&1 &) ; while [ ! -e go ]; do sleep 0.02; done; exit 6"
    )
    other = world.start("sleep 1000")
    until(lambda: sleepers(mark))
    shims = shim_of(world, one), shim_of(world, other)
    kill(*shims)
    world.turn_until(lambda: {world.record(one)["shim"], world.record(other)["shim"]}.isdisjoint(shims))
    (world.state_dir / "go").touch()
    assert world.end(one).exit_code == 6
    world.halt(other, Halt.STOP)
    assert world.end(other).cause is Cause.STOPPED
    [stray] = sleepers(mark)
    os.kill(int(stray), signal.SIGKILL)


def test_more_processes_than_descriptors(world: World) -> None:
    mark = str(3_000_000 + os.getpid())
    attempt = world.start(f"i=0; while [ $i -lt 100 ]; do sleep {mark} & i=$((i+1)); done; wait", stop_timeout_s=0.2)
    until(lambda: len(sleepers(mark)) >= 100)
    server = parent_of(shim_of(world, attempt))
    resource.prlimit(server, resource.RLIMIT_NOFILE, (60, 60))
    take_over(world, attempt)
    world.halt(attempt, Halt.STOP)
    assert world.end(attempt).cause is Cause.STOPPED
    assert not sleepers(mark)


def test_who_only_reads_the_output_is_a_stranger(world: World) -> None:
    attempt = world.start("sleep 1000")
    take_over(world, attempt)
    fifo = world.state_dir / "fifos" / world.record(attempt)["fifo"]
    reader = os.posix_spawn("/bin/sh", ["sh", "-c", f"exec sleep 1000 < {fifo}"], dict(os.environ))
    until(lambda: Path(f"/proc/{reader}/comm").read_text() == "sleep\n")
    try:
        world.halt(attempt, Halt.KILL)
        world.end(attempt)
        assert state_of(reader) == "S"
    finally:
        os.kill(reader, signal.SIGKILL)
        os.waitpid(reader, 0)


def test_an_adopted_shim_that_is_killed(world: World) -> None:
    attempt = world.start(f"{WAIT_FOR_GO}; echo done; exit 6")
    shim = shim_of(world, attempt)
    world.leave()
    after = World(world.state_dir)
    after.started.append(attempt)
    after.executor.recover({attempt: BOOT})
    after.hear(Started, attempt)
    kill(shim)
    after.turn_until(lambda: after.record(attempt)["shim"] != shim)
    (world.state_dir / "go").touch()
    assert after.end(attempt).exit_code == 6
    assert after.log(attempt) == "done\n"
    after.executor.forget(attempt)
    after.leave()
    until(lambda: not left_behind(after))


def test_a_shim_that_has_taken_over_is_adopted_like_any(world: World) -> None:
    attempt = world.start(f"{WAIT_FOR_GO}; exit 6")
    take_over(world, attempt)
    world.leave()
    after = World(world.state_dir)
    after.started.append(attempt)
    after.executor.recover({attempt: BOOT})
    after.hear(Started, attempt)
    (world.state_dir / "go").touch()
    assert after.end(attempt).exit_code == 6
    after.clean_up()


def test_killed_before_the_process_was_made(world: World) -> None:
    """Its record does not say `begun`: nothing ran, and the attempt is not consumed."""
    attempt = world.start("sleep 1000")
    shim_of(world, attempt)
    kept = world.record(attempt)
    forged = {**kept, "shim_start": kept["shim_start"] - 1, "pid": None}
    (world.state_dir / "attempts/77.json").write_text(json.dumps(forged))
    world.executor.recover({77: BOOT})
    assert "before the start" in world.hear(NotStarted, 77).reason


NOT_RECORDS: dict[str, bytes] = {
    "nothing": b"",
    "no keys": b"{}",
    "odd ending": b'{"ending": {"x": 1}}',
    "odd reason": b'{"given_up": {"a": 1}}',
    "deep": b"[" * 3900,
    "a wrong type": b'{"shim": 1, "shim_start": 1, "boot": "x", "fifo": "1-1", "log": "l", "started_at": 1, "pid": 2,'
    b' "ending": {"cause": "exited", "exit_code": "abc"}}',
    "no process": b'{"shim": -1, "shim_start": 1, "boot": "x", "fifo": "1-1", "log": "l", "started_at": 1, "pid": null,'
    b' "ending": null}',
}


@pytest.mark.parametrize("content", NOT_RECORDS.values(), ids=NOT_RECORDS.keys())
def test_a_record_that_makes_no_sense_is_lost_and_harms_no_other(world: World, content: bytes) -> None:
    (world.state_dir / "attempts/99.json").write_bytes(content)
    os.mkfifo(world.state_dir / "attempts/98.json")
    (world.state_dir / "attempts/97.json").mkdir()
    world.executor.recover({99: BOOT, 98: BOOT})
    assert world.end(99).cause is Cause.LOST
    assert world.end(98).cause is Cause.LOST
    assert world.run("exit 3").exit_code == 3
    for attempt in (97, 98, 99):
        world.executor.forget(attempt)
    world.executor._sweep()
    assert world.run("exit 3").exit_code == 3


def test_a_timeout_of_a_year(world: World) -> None:
    assert world.run("exit 3", timeout_s=365 * 86400.0).exit_code == 3


def test_a_stuck_shim_is_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.executor.OBEY_S", 0.2)
    attempt = world.start("sleep 1000", stop_timeout_s=0.1)
    shim = shim_of(world, attempt)
    world.halt(attempt, Halt.STOP)
    os.kill(shim, signal.SIGSTOP)
    until(lambda: state_of(shim) in ("T", None))
    assert world.end(attempt).cause is Cause.STOPPED
    assert only_one_ending(world, attempt)
    with contextlib.suppress(ProcessLookupError):
        os.kill(shim, signal.SIGCONT)  # it may have ended the attempt before it was stopped, and is to leave


def test_the_files_of_a_killed_shim_are_removed(world: World) -> None:
    attempt = world.start(f"{WAIT_FOR_GO}")
    take_over(world, attempt)
    (world.state_dir / "go").touch()
    world.end(attempt)
    world.executor.forget(attempt)
    world.turn_until(lambda: all(lives(int(name.split("-")[0])) for name in left_behind(world)))


def test_a_status_that_only_the_killed_shim_had_seen(world: World) -> None:
    attempt = world.start(f"({WAIT_FOR_GO}) & exit 5")
    shim = shim_of(world, attempt)
    until(lambda: world.record(attempt).get("main_exit"))
    kill(parent_of(shim), shim)
    (world.state_dir / "go").touch()
    assert world.end(attempt).exit_code == 5


def test_output_of_a_job_that_ended_while_nobody_read_it(world: World) -> None:
    attempt = world.start(f"{WAIT_FOR_GO}; echo last words; exit 5")
    shim = shim_of(world, attempt)
    world.leave()
    kill(shim)
    (world.state_dir / "go").touch()
    until(lambda: world.record(attempt).get("main_exit"))
    after = World(world.state_dir)
    after.started.append(attempt)
    after.executor.recover({attempt: BOOT})
    assert after.end(attempt).exit_code == 5
    assert after.log(attempt) == "last words\n"
    after.clean_up()
