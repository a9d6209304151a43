"""jobd is stopped and started again: everything is as it was, and goes on."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys

from tests.end_to_end.conftest import PROJECT, Jobd


def test_after_a_clean_restart_everything_is_as_it_was_and_goes_on(jobd: Jobd) -> None:
    os.mkfifo(jobd.folder / "gate")
    jobd.start("""
[jobs.done]
command = "echo x >> done"
[jobs.long]
command = "echo started >> long; read x < gate; exit 3"
needs = ["done"]
[jobs.after]
command = "true"
needs = ["long:failed"]
[jobs.held]
command = "true"
""")
    jobd.ctl("hold", "held")
    jobd.ctl("start")
    jobd.await_event(lambda event: event["kind"] == "running" and event["job"] == "long")
    before = jobd.jobs()
    assert jobd.stop() == 0
    jobd.start()
    after = jobd.jobs()
    for job in (*before.values(), *after.values()):
        job.pop("duration_s")
    assert before.pop("long")["pid"] == after.pop("long")["pid"]
    assert before == after

    (jobd.folder / "gate").write_text("go\n")
    jobd.await_event(lambda event: event["kind"] == "success" and event["job"] == "after")
    states = jobd.states()
    assert states == {"done": "success", "long": "failed", "after": "success", "held": "queued"}
    assert jobd.jobs()["long"]["exit_code"] == 3
    assert (jobd.folder / "long").read_text() == "started\n"


def test_an_end_that_falls_between_two_daemons_is_recorded_truly(jobd: Jobd) -> None:
    os.mkfifo(jobd.folder / "gate")
    jobd.start("[jobs.long]\ncommand = 'read x < gate; exit 9'\n")
    jobd.ctl("start")
    jobd.await_event(lambda event: event["kind"] == "running")
    pid = jobd.jobs()["long"]["pid"]
    jobd.stop()
    job = os.pidfd_open(pid)
    (jobd.folder / "gate").write_text("go\n")
    _await_end(job)
    jobd.start()
    jobd.ctl("wait", code=1)
    assert jobd.jobs()["long"]["exit_code"] == 9


def _await_end(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(30_000)
    os.close(pidfd)


def test_a_second_daemon_on_one_state_directory_exits_75(jobd: Jobd) -> None:
    jobd.start("[jobs.one]\ncommand = 'true'\n")
    other = subprocess.run(
        [
            sys.executable,
            "-m",
            "supervisor",
            "-c",
            jobd.config,
            "--state-dir",
            jobd.state,
            "--socket",
            jobd.folder / "t",
        ],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=30,
        check=False,
    )
    assert other.returncode == 75
    assert "another jobd" in other.stderr
    assert not (jobd.folder / "t").exists()
    jobd.ctl("ping")


def test_shutdown_leaves_stops_or_drains(jobd: Jobd) -> None:
    os.mkfifo(jobd.folder / "gate")
    jobd.start("[jobs.long]\ncommand = 'read x < gate'\n[jobs.next]\ncommand = 'true'\nneeds = ['long']\n")
    jobd.ctl("start")
    jobd.await_event(lambda event: event["kind"] == "running")
    assert jobd.ctl("shutdown", "--drain", "--json").json["waits_for"] == ["long"]
    (jobd.folder / "gate").write_text("go\n")
    assert jobd.process is not None
    assert jobd.process.wait(30) == 0
    jobd.start()
    jobd.ctl("wait")
    assert jobd.states() == {"long": "success", "next": "success"}
    jobd.ctl("shutdown")
    assert jobd.process.wait(30) == 0


def test_a_reload_by_signal_adds_jobs_and_a_broken_file_changes_nothing(jobd: Jobd) -> None:
    jobd.start("[jobs.one]\ncommand = 'true'\n")
    jobd.configure("[jobs.one]\ncommand = 'true'\n[jobs.two]\ncommand = 'true'\n")
    assert jobd.process is not None
    jobd.process.send_signal(signal.SIGHUP)
    jobd.await_event(lambda event: event["kind"] == "reloaded")
    assert set(jobd.states()) == {"one", "two"}
    jobd.configure("[jobs.one]\ncommand = 'true'\nneeds = ['nobody']\n")
    result = jobd.ctl("reload", "--json", code=78)
    assert "nobody" in result.json["errors"][0]["message"]
    assert set(jobd.states()) == {"one", "two"}


def test_a_drain_shows_what_it_waits_for(jobd: Jobd) -> None:
    os.mkfifo(jobd.folder / "gate")
    jobd.start("[jobs.long]\ncommand = 'read x < gate'\n")
    jobd.ctl("start")
    jobd.await_event(lambda event: event["kind"] == "running")
    assert "waits for long" in jobd.ctl("shutdown", "--drain").out
    assert jobd.ctl("status", "--json").json["daemon"]["state"] == "leaving: waits for long"
    assert jobd.ctl("status").out.startswith("jobd  leaving: waits for long\n")
    (jobd.folder / "gate").write_text("go\n")
    assert jobd.process is not None
    assert jobd.process.wait(30) == 0


def test_a_stopped_shim_is_shown_and_its_job_can_be_stopped(jobd: Jobd) -> None:
    jobd.start("[jobs.long]\ncommand = 'sleep 1000'\n")
    jobd.ctl("start")
    jobd.await_event(lambda event: event["kind"] == "running")
    [path] = (jobd.state / "attempts").glob("*.json")
    shim = json.loads(path.read_text())["shim"]
    os.kill(shim, signal.SIGSTOP)
    assert f"kill -CONT {shim}" in jobd.jobs()["long"]["reason"]
    jobd.ctl("stop", "--wait")
    assert jobd.states() == {"long": "stopped"}
