"""The disk of the state directory is full: nothing starts, outcomes are kept, it goes on by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Jobd

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
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def await_processes(jobd: Jobd) -> None:
    """Until each running job has a process: a shim that has not begun could not begin on a full disk."""
    while any(job["state"] == "running" and not job["pid"] for job in jobd.jobs().values()):
        pass  # each call asks anew; there is no event for it


def test_outcomes_are_recorded_once_there_is_room_again(jobd: Jobd, small_disk: Path) -> None:
    os.mkfifo(jobd.folder / "gate")
    jobd.start("""
[jobs.good]
command = "read x < gate; echo much output"
[jobs.bad]
command = "read x < gate; exit 7"
[jobs.next]
command = "echo next >> ledger"
needs = ["good"]
""")
    jobd.ctl("start")
    await_processes(jobd)
    filler = fill(small_disk)
    writer = os.open(jobd.folder / "gate", os.O_RDWR)
    os.write(writer, b"go\ngo\n")
    while "cannot be written" not in jobd.ctl("status", "--json").json["daemon"]["state"]:
        pass  # each call asks anew; the daemon has no way to tell of this by an event
    refused = jobd.ctl("start", "next", code=1)
    assert "make room" in refused.err
    assert not (jobd.folder / "ledger").exists()

    filler.unlink()
    jobd.await_event(lambda event: event["kind"] == "run_failed")
    os.close(writer)
    assert jobd.states() == {"good": "success", "bad": "failed", "next": "success"}
    assert jobd.jobs()["bad"]["exit_code"] == 7
    assert (jobd.folder / "ledger").read_text() == "next\n"
    assert jobd.ctl("status", "--json").json["daemon"]["state"] == "running"


def test_a_daemon_that_dies_on_a_full_disk_loses_nothing(jobd: Jobd, small_disk: Path) -> None:
    os.mkfifo(jobd.folder / "gate")
    jobd.start("[jobs.one]\ncommand = 'read x < gate; exit 5'\n")
    jobd.ctl("start")
    await_processes(jobd)
    filler = fill(small_disk)
    (jobd.folder / "gate").write_text("go\n")
    while "cannot be written" not in jobd.ctl("status", "--json").json["daemon"]["state"]:
        pass
    assert jobd.stop() == 0
    filler.unlink()
    jobd.start()
    jobd.ctl("wait", code=1)
    assert jobd.jobs()["one"]["exit_code"] == 5
