"""The disk of the state directory is full: nothing starts, outcomes are kept, it goes on by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.conftest import PATIENCE_S, Jobd

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a file system")


@pytest.fixture
def small_disk(jobd: Jobd) -> Iterator[Path]:
    """4 MB for the state directory."""
    jobd.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", jobd.state], check=True)
    yield jobd.state
    jobd.clean_up()
    subprocess.run(["umount", "-l", jobd.state], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with open(filler, "ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def await_processes(jobd: Jobd) -> None:
    """Until each running job has a process: a shim that has not begun could not begin on a full disk."""
    await_that(lambda: all(job["pid"] for job in jobd.jobs().values() if job["state"] == "running"))


def await_trouble(jobd: Jobd) -> None:
    """Until `status` says why nothing is done."""
    await_that(lambda: "jobd.db cannot be written: database or disk is full" in daemon_state(jobd))


def await_that(is_so: Callable[[], bool]) -> None:
    """Each call asks anew: there is no event for it."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline


def daemon_state(jobd: Jobd) -> str:
    state: str = jobd.ctl("status", "--json").json["daemon"]["state"]
    return state


@pytest.fixture
def gate(jobd: Jobd) -> Iterator[int]:
    """Each line that is written to it lets one job end."""
    os.mkfifo(jobd.folder / "gate")
    fd = os.open(jobd.folder / "gate", os.O_RDWR)
    yield fd
    os.close(fd)


CONFIG = """
[jobs.good]
command = "read x < gate; echo much output"
[jobs.bad]
command = "read x < gate; exit 7"
[jobs.next]
command = "echo next >> ledger"
needs = ["good"]
[jobs.other]
command = "echo other >> ledger"
"""


def start(jobd: Jobd) -> None:
    """Two jobs run, one waits for one of them, one has not been asked for."""
    jobd.start(CONFIG)
    jobd.ctl("start", "good", "bad", "next")
    await_processes(jobd)


def check_end(jobd: Jobd) -> None:
    """There is room again: all is recorded as it was, once, and what had waited has started, once."""
    await_that(lambda: daemon_state(jobd) == "running")
    jobd.ctl("wait", "main", code=1)
    assert jobd.states() == {"good": "success", "bad": "failed", "next": "success", "other": "stopped"}
    assert jobd.jobs()["bad"]["exit_code"] == 7
    assert (jobd.folder / "ledger").read_text() == "next\n"
    attempts = jobd.ctl("history", "--json").json["attempts"]
    ended = {"good": "success", "bad": "failed", "next": "success"}
    assert {attempt["job"]: attempt["state"] for attempt in attempts} == ended
    assert [attempt["attempt"] for attempt in attempts] == [1, 1, 1]
    events = [json.loads(line) for line in jobd.ctl("events", "--since", "0", "--json").out.splitlines()]
    assert [event["id"] for event in events] == [*range(1, len(events) + 1)]
    for job, state in ended.items():
        assert sum(event["job"] == job and event["kind"] == state for event in events) == 1


def test_outcomes_are_recorded_once_there_is_room_again(jobd: Jobd, small_disk: Path, gate: int) -> None:
    start(jobd)
    filler = fill(small_disk)
    os.write(gate, b"go\ngo\n")
    await_trouble(jobd)
    for command in (["start", "other"], ["stop"], ["hold", "other"]):
        refused = jobd.ctl(*command, code=1)
        assert "make room" in refused.err
    assert not (jobd.folder / "ledger").exists()
    filler.unlink()
    check_end(jobd)
    assert jobd.log.count("nothing is started until it can be written again") == 1


def test_a_daemon_that_leaves_on_a_full_disk_loses_nothing(jobd: Jobd, small_disk: Path, gate: int) -> None:
    start(jobd)
    filler = fill(small_disk)
    os.write(gate, b"go\ngo\n")
    await_trouble(jobd)
    assert jobd.stop() == 0
    filler.unlink()
    jobd.start()
    check_end(jobd)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("jobs_end", ["before", "between", "after"])
def test_a_daemon_that_is_started_on_a_full_disk_serves_and_loses_nothing(
    jobd: Jobd, small_disk: Path, gate: int, signum: int, jobs_end: str
) -> None:
    """It tells why it does nothing, and does it as soon as there is room; jobs end whenever they like."""
    start(jobd)
    running = [psutil.Process(job["pid"]) for job in jobd.jobs().values() if job["pid"]]
    fill(small_disk)
    if jobs_end == "before":
        os.write(gate, b"go\ngo\n")
        await_trouble(jobd)
    jobd.stop(signum)
    if jobs_end == "between":
        os.write(gate, b"go\ngo\n")
        psutil.wait_procs(running, PATIENCE_S)
    filler = fill(small_disk)  # also of what the last daemon left free
    jobd.start()
    if jobs_end == "after":
        os.write(gate, b"go\ngo\n")
    await_trouble(jobd)
    assert "make room" in jobd.ctl("start", "other", code=1).err
    assert not (jobd.folder / "ledger").exists()
    filler.unlink()
    check_end(jobd)
