"""What a job's processes may do, and what becomes of them and their output."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.conftest import JOBCTL, Jobd

#: Leaves a process behind in every way at once, then ends.
DAEMONISER = """
nohup sh -c 'read x < gate; echo nohup >> ended' > /dev/null 2>&1 &
setsid sh -c 'read x < gate; echo setsid >> ended' &
( ( read x < gate; echo double >> ended ) & )
"""


def make_gate(jobd: Jobd) -> Path:
    gate = jobd.folder / "gate"
    os.mkfifo(gate)
    return gate


def test_a_job_runs_until_the_last_process_that_it_left_behind_has_ended(jobd: Jobd) -> None:
    gate = make_gate(jobd)
    jobd.start(f"[jobs.daemoniser]\ncommand = '''{DAEMONISER}'''\n")
    jobd.ctl("start")
    for _ in range(2):
        assert jobd.ctl("wait", "--timeout", "0.3", code=124)
        assert jobd.states() == {"daemoniser": "running"}
    writer = os.open(gate, os.O_RDWR)
    os.write(writer, b"go\n" * 3)
    jobd.ctl("wait")
    os.close(writer)
    assert sorted((jobd.folder / "ended").read_text().split()) == ["double", "nohup", "setsid"]


def test_with_finish_main_the_leftovers_are_killed(jobd: Jobd) -> None:
    make_gate(jobd)
    jobd.start(f"[jobs.daemoniser]\nfinish = 'main'\ncommand = '''{DAEMONISER}'''\n")
    jobd.ctl("start", "--wait")
    assert not processes_in(jobd.folder)
    assert not (jobd.folder / "ended").exists()


def test_stop_ends_all_processes_of_a_job_and_no_other(jobd: Jobd) -> None:
    make_gate(jobd)
    canary = subprocess.Popen(["sleep", "600"], cwd=jobd.folder)
    jobd.start(f"""
[jobs.stubborn]
stop_timeout = 0.2
command = '''
trap '' TERM
{DAEMONISER}
echo ready
while :; do sleep 600; done
'''
""")
    jobd.ctl("start")
    jobd.await_event(lambda event: event["kind"] == "running")
    jobd.ctl("stop", "--wait")
    try:
        assert jobd.states() == {"stubborn": "stopped"}
        assert processes_in(jobd.folder) == {canary.pid}
        assert canary.poll() is None
    finally:
        canary.kill()
        canary.wait()


def processes_in(folder: Path) -> set[int]:
    """Processes that work in this folder, the daemon's helpers aside (they are python)."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and not process.name().startswith("python"):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def test_writing_to_dev_stderr_keeps_the_log_whole(jobd: Jobd) -> None:
    jobd.start("[jobs.writer]\ncommand = 'echo one; echo two > /dev/stderr; echo three > /dev/stdout; echo four'\n")
    jobd.ctl("start", "--wait")
    assert jobd.ctl("logs", "writer").out.split() == ["one", "two", "three", "four"]


def test_a_job_that_writes_a_gigabyte_ends_well_and_the_rest_is_counted(jobd: Jobd) -> None:
    jobd.start("[jobs.flood]\nlog_max = '1MB'\ncommand = 'head -c 1000000000 /dev/zero'\n")
    jobd.ctl("start", "--wait")
    [attempt] = jobd.ctl("history", "--json").json["attempts"]
    assert attempt["state"] == "success"
    assert attempt["log_dropped_bytes"] == 999_000_000
    assert 1_000_000 <= (jobd.state / "logs" / attempt["log"]).stat().st_size < 1_001_000


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ("command = 'exit 7'", "exit code 7"),
        ("command = 'kill -SEGV $$'", "signal 11"),
        ("command = 'sleep 600'\ntimeout = 0.2", "timed out after 0.2s"),
        ("command = 'no-such-command --now'", "no-such-command"),
        ("command = ['no-such-command']", "no-such-command"),
        ("command = './script.sh'", "not executable"),
        ("command = './missing.sh'", "missing.sh"),
        ("command = 'true'\ndir = 'nowhere'", "nowhere"),
    ],
)
def test_every_way_to_fail_has_its_own_reason(jobd: Jobd, definition: str, reason: str) -> None:
    (jobd.folder / "script.sh").write_text("#!/bin/sh\nexit 0\n")
    jobd.start(f"[jobs.bad]\n{definition}\n")
    jobd.ctl("start", "--wait", code=1)
    bad = jobd.jobs()["bad"]
    assert bad["state"] == "failed"
    assert reason in bad["reason"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may name another user")
def test_a_missing_user_is_a_reason_to_fail(jobd: Jobd) -> None:
    jobd.start("[jobs.bad]\ncommand = 'true'\nuser = 'no-such-user'\n")
    jobd.ctl("start", "--wait", code=1)
    assert "no-such-user" in jobd.jobs()["bad"]["reason"]


def test_following_a_log_ends_with_the_attempt(jobd: Jobd) -> None:
    gate = make_gate(jobd)
    jobd.start("[jobs.talker]\ncommand = 'echo before; read x < gate; echo after'\n")
    jobd.ctl("start")
    command = [JOBCTL, "--socket", str(jobd.socket), "logs", "-f", "talker"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as f:
        assert f.stdout is not None
        assert f.stdout.readline() == "before\n"
        gate.write_text("go\n")
        assert f.stdout.readline() == "after\n"
        assert f.wait(30) == 0


def test_a_signal_to_the_terminal_reaches_the_daemon_only(jobd: Jobd) -> None:
    """INT to the daemon stops its jobs and ends it; their state is kept."""
    jobd.start("[jobs.long]\ncommand = 'sleep 600'\n")
    jobd.ctl("start")
    jobd.await_event(lambda event: event["kind"] == "running")
    assert jobd.stop(signal.SIGINT) == 0
    assert not processes_in(jobd.folder)
    jobd.start()
    assert jobd.states() == {"long": "stopped"}


def test_a_log_that_is_removed_while_someone_follows_it_harms_nobody(jobd: Jobd) -> None:
    os.mkfifo(jobd.folder / "gate")
    jobd.start("[jobs.one]\ncommand = 'echo first; read x < gate; echo last'\n")
    jobd.ctl("start")
    with subprocess.Popen(
        [JOBCTL, "logs", "-f", "one"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JOBD_SOCKET": str(jobd.socket)},
    ) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "first\n"
        shutil.rmtree(jobd.state / "logs/main")
        (jobd.folder / "gate").write_text("go\n")
        jobd.ctl("wait")
        assert follower.stdout.read() == "last\n"
    jobd.ctl("ping")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to lose")
def test_roots_jobs_read_no_env_file_that_others_can_change(jobd: Jobd) -> None:
    (jobd.folder / "env").write_text("PATH=/tmp\n")
    os.chown(jobd.folder / "env", 65534, -1)
    jobd.start("[jobs.one]\ncommand = 'true'\nenv_file = 'env'\n")
    jobd.ctl("start", "--wait", code=1)
    assert "is not safe to use as root" in jobd.jobs()["one"]["reason"]
