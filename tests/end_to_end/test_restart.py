"""jobd is stopped and started again: everything is as it was, and goes on."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from supervisor import record
from tests.end_to_end.conftest import JOBCTL, PROJECT, Jobd


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


def test_a_removed_lock_file_lets_no_second_daemon_in(jobd: Jobd) -> None:
    jobd.start("[jobs.one]\ncommand = 'true'\n")
    (jobd.state / "lock").unlink()
    options = ["-c", str(jobd.config), "--state-dir", str(jobd.state), "--socket", str(jobd.folder / "t")]
    other = subprocess.run([sys.executable, "-m", "supervisor", *options], cwd=PROJECT, timeout=30, check=False)
    assert other.returncode == 75


def test_a_report_waits_for_a_daemon_that_is_restarted(jobd: Jobd) -> None:
    os.mkfifo(jobd.folder / "gate")
    command = f"read x < gate; {JOBCTL} report success --data 5"
    jobd.start(f"[jobs.one]\ncommand = '{command}'\nfinish = 'report'\n")
    jobd.ctl("start")
    jobd.await_event(lambda event: event["kind"] == "running")
    jobd.stop(signal.SIGKILL)
    (jobd.folder / "gate").write_text("go\n")
    jobd.start()
    jobd.ctl("wait")
    assert jobd.jobs()["one"]["data"] == 5


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
    shim = (record.read(str(path)) or {})["shim"]
    os.kill(shim, signal.SIGSTOP)
    assert f"kill -CONT {shim}" in jobd.jobs()["long"]["reason"]
    jobd.ctl("stop", "--wait")
    assert jobd.states() == {"long": "stopped"}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_restarts_in_the_middle_of_the_sample_change_nothing(jobd: Jobd, signum: int) -> None:
    """`systemctl restart` after every job that succeeds: all nine succeed, each by its first attempt."""
    shutil.copytree(PROJECT / "etc", jobd.folder / "etc")
    jobd.config = jobd.folder / "etc/jobs.toml"
    jobd.start()
    jobd.ctl("start", "inventory")
    for count in range(1, 9):
        jobd.await_event(succeeded(count))
        assert jobd.stop(signum) == (0 if signum == signal.SIGTERM else -signum)
        jobd.start()
    jobd.ctl("wait", "inventory")
    assert set(jobd.states().values()) == {"success"}
    attempts = jobd.ctl("history", "--json").json["attempts"]
    assert len(attempts) == len(jobd.states()) == 9
    assert (jobd.folder / "var/inventory/report.md").exists()


def succeeded(count: int) -> Callable[[dict[str, Any]], bool]:
    """So many jobs have ended well."""
    seen: set[str] = set()

    def wanted(event: dict[str, Any]) -> bool:
        if event["kind"] == "success":
            seen.add(event["job"])
        return len(seen) >= count

    return wanted


def test_daemon_forkserver_and_a_shim_killed_at_once(jobd: Jobd) -> None:
    """That one job is lost, or what it says is true. The others are unharmed, and so is a stranger."""
    gate = "while [ ! -e go ]; do sleep 0.05; done"
    jobd.start("".join(f"[jobs.job{n}]\ncommand = '{gate}; echo end {n}; exit {n}'\n" for n in range(5)))
    jobd.ctl("start")
    records: list[dict[str, Any]] = []
    while len(records) < 5:
        files = (jobd.state / "attempts").glob("*.json")
        records = [kept for file in files if (kept := record.read(str(file))) and kept["pid"]]
    victim = next(kept for kept in records if kept["log"].endswith("job0.1.log"))
    canary = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    assert jobd.process is not None
    forkserver = psutil.Process(victim["shim"]).ppid()
    pids = (jobd.process.pid, forkserver, victim["shim"])
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that none of them sees another one die
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    jobd.process.wait(30)
    jobd.start()
    path = f"{jobd.state}/attempts/{victim['attempt']}.json"
    while (record.read(path) or {})["shim"] == victim["shim"]:
        jobd.ctl("ping")  # until another shim reads the job's output
    (jobd.folder / "go").touch()
    jobd.ctl("wait", code=1)
    jobs = jobd.jobs()
    assert (jobs["job0"]["state"], jobs["job0"]["exit_code"]) in [("lost", None), ("success", 0)]
    assert [jobs[f"job{n}"]["state"] for n in range(1, 5)] == ["failed"] * 4
    assert [jobs[f"job{n}"]["exit_code"] for n in range(1, 5)] == [1, 2, 3, 4]
    assert [jobd.ctl("logs", f"job{n}").out for n in range(5)] == [f"end {n}\n" for n in range(5)]
    assert canary.poll() is None
    canary.kill()
    canary.wait(30)


def test_a_killed_shim_is_made_up_for_by_the_daemon_itself(jobd: Jobd) -> None:
    """Without forkserver, jobd is the next subreaper up: it sees the job's end."""
    jobd.start("[jobs.one]\ncommand = 'while [ ! -e go ]; do sleep 0.05; done; exit 7'\n")
    jobd.ctl("start")
    jobd.await_event(lambda event: event["kind"] == "running")
    records: list[dict[str, Any]] = []
    while not records:
        files = (jobd.state / "attempts").glob("*.json")
        records = [kept for file in files if (kept := record.read(str(file))) and kept["pid"]]
    shim = records[0]["shim"]
    forkserver = psutil.Process(shim).ppid()
    for pid in (forkserver, shim):
        os.kill(pid, signal.SIGSTOP)
    for pid in (forkserver, shim):
        os.kill(pid, signal.SIGKILL)
    (jobd.folder / "go").touch()
    jobd.ctl("wait", code=1)
    assert jobd.jobs()["one"]["exit_code"] == 7
