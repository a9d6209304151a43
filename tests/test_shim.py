"""What one attempt is to a job, and what becomes of it. Real processes throughout."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.events import Cause, Ending, Exited, Halt, Started
from supervisor.core.model import Finish, Limits

from .process_helpers import World, lives, processes_with, state_of, until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start jobs of other users")

#: Fields of a job that take it down each of the two ways in which a process is made.
BOTH_WAYS: list[Any] = [
    pytest.param({}, id="spawn"),
    pytest.param({"limits": Limits(open_files=200)}, id="fork"),
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.clean_up()


def script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


# ---- how it ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", BOTH_WAYS)
@pytest.mark.parametrize(
    ("command", "code", "signum"),
    [
        ("true", 0, None),
        ("exit 7", 7, None),
        ("exit 255", 255, None),
        ("kill -SEGV $$", None, 11),
        ("kill -KILL $$", None, 9),
        ("missing_a_b_c || exit 3", 3, None),
        ("missing_a_b_c; exit 4", 4, None),
        (("sh", "-c", 'exit "$0"', "9"), 9, None),
    ],
)
def test_exit_code_or_signal(world: World, way: dict[str, Any], command: Any, code: int, signum: int) -> None:
    ending = world.run(command, **way)
    assert (ending.cause, ending.exit_code, ending.signal) == (Cause.EXITED, code, signum)
    assert ending.started_at
    assert ending.finished_at
    assert ending.finished_at >= ending.started_at
    assert ending.duration_s is not None
    assert ending.duration_s >= 0


def test_usage_counts_all_processes_of_the_attempt(world: World) -> None:
    burn = f"{sys.executable} -c 'import time\nx = b\"x\" * 50_000_000\nwhile time.process_time() < 0.2: pass'"
    ending = world.run(f"({burn} &) ; {burn}")
    assert ending.cpu_s is not None
    assert ending.cpu_s >= 0.4
    assert ending.max_rss_bytes is not None
    assert ending.max_rss_bytes > 50_000_000


def test_started_names_the_main_process(world: World) -> None:
    attempt = world.start("echo $$; exec sleep 1000")
    started = world.hear(Started, attempt)
    assert world.executor.pid_of(attempt) == started.pid
    until(lambda: world.turn_until(lambda: world.log(attempt)) == f"{started.pid}\n")
    world.halt(attempt, Halt.KILL)
    assert world.end(attempt).signal == signal.SIGKILL
    assert world.executor.pid_of(attempt) is None


# ---- what cannot start ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", BOTH_WAYS)
@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"command": "missing_a_b_c --x"}, "no such command: missing_a_b_c"),
        ({"command": ("missing_a_b_c",)}, "no such command: missing_a_b_c"),
        ({"command": "./missing.sh"}, "no such command: ./missing.sh"),
        ({"command": "./plain.sh"}, "not executable: ./plain.sh"),
        ({"command": ("./plain.sh",)}, "not executable: ./plain.sh"),
        ({"command": ("./folder",)}, "not a program: ./folder"),
        ({"command": ("./garbage",)}, "not a program: ./garbage"),
        ({"command": ("./orphan",)}, "its interpreter is missing"),
        ({"command": "true", "dir": "/no/such/folder"}, "no such folder: /no/such/folder"),
        ({"command": "true", "user": "no-such-user"}, "no such user: no-such-user"),
        ({"command": "true", "env_file": "/no/such/file"}, "cannot read env_file /no/such/file"),
        ({"command": ("true", "x" * 90_000), "env": {"A": "y" * 90_000}}, "take 18"),
    ],
)
def test_what_cannot_start_says_why(world: World, way: dict[str, Any], fields: dict[str, Any], what: str) -> None:
    script(world.state_dir / "plain.sh", "#!/bin/sh\n", 0o644)
    script(world.state_dir / "garbage", "neither binary nor script\n")
    script(world.state_dir / "orphan", "#!/no/such/interpreter\n")
    (world.state_dir / "folder").mkdir()
    attempt = world.start(**{**way, **fields})
    ending = world.end(attempt)
    assert (ending.cause, ending.exit_code, ending.signal) == (Cause.UNSTARTABLE, None, None)
    assert ending.text.startswith("could not start: ")
    assert what in ending.text
    assert not any(isinstance(event, Started) for event in world.of(attempt))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may become anyone")
def test_only_root_can_start_jobs_of_others(world: World) -> None:
    ending = world.run("true", user="root")
    assert ending.cause is Cause.UNSTARTABLE
    assert "only root" in ending.text


def test_a_limit_that_cannot_be_set_is_named(world: World) -> None:
    ending = world.run("true", limits=Limits(open_files=2**62))
    assert ending.cause is Cause.UNSTARTABLE
    assert "limits.open_files" in ending.text


# ---- what a job sees -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", BOTH_WAYS)
def test_the_environment_is_exactly_the_documented_one(world: World, way: dict[str, Any]) -> None:
    settings = world.state_dir / "settings"
    settings.write_text("# comment\nexport FROM_FILE='one two'\nA=file\nLANG=xx\nJOBD_JOB=forged\n")
    text = world.output(("/usr/bin/env",), env={"A": "env", "JOBD_DAG": "forged"}, env_file=str(settings), **way)
    account = pwd.getpwuid(os.geteuid())
    assert dict(line.split("=", 1) for line in text.splitlines()) == {
        "PATH": f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{Path(sys.executable).parent}",
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell,
        "LANG": "xx",
        "TZ": "Europe/Berlin",
        "FROM_FILE": "one two",
        "A": "env",
        "JOBD_JOB": "job-1",
        "JOBD_DAG": "main",
        "JOBD_RUN": "main@2026-03-01T02:00",
        "JOBD_RUN_DATE": "2026-03-01",
        "JOBD_ATTEMPT": "1",
        "JOBD_SOCKET": str(world.state_dir / "jobd.sock"),
    }


@pytest.mark.parametrize("way", BOTH_WAYS)
def test_signals_are_at_their_defaults(world: World, way: dict[str, Any]) -> None:
    status = world.output(("cat", "/proc/self/status"), **way)
    masks = {
        line.split(":")[0]: int(line.split()[1], 16)
        for line in status.splitlines()
        if line.startswith(("SigB", "SigI", "SigC"))
    }
    assert (masks["SigBlk"], masks["SigIgn"], masks["SigCgt"]) == (0, 0, 0)


@pytest.mark.parametrize("way", BOTH_WAYS)
def test_no_descriptors_but_the_three(world: World, way: dict[str, Any]) -> None:
    assert world.output("ls /proc/$$/fd; true", **way).split() == ["0", "1", "2"]
    assert world.output("readlink /proc/$$/fd/0; true", **way) == "/dev/null\n"


@pytest.mark.parametrize("way", BOTH_WAYS)
def test_a_session_of_its_own_in_its_folder(world: World, way: dict[str, Any]) -> None:
    folder = world.state_dir / "work"
    folder.mkdir()
    attempt = world.start("pwd; cut -d' ' -f6 /proc/$$/stat; true", dir=str(folder), **way)
    world.end(attempt)
    assert world.log(attempt).split() == [str(folder), str(world.hear(Started, attempt).pid)]


@pytest.mark.parametrize("way", BOTH_WAYS)
def test_umask(world: World, way: dict[str, Any]) -> None:
    own = os.umask(0)
    os.umask(own)
    assert int(world.output("umask", umask=0o027, **way), 8) == 0o027
    assert int(world.output("umask", **way), 8) == own


def test_limits(world: World) -> None:
    limits = Limits(memory_bytes=3 << 30, cpu_time_s=90.5, open_files=123, processes=4567, nice=7)
    text = world.output(("cat", "/proc/self/limits", "/proc/self/stat"), limits=limits)
    assert "Max address space         3221225472           3221225472" in text
    assert "Max cpu time              91                   96" in text
    assert "Max open files            123                  123" in text
    assert "Max processes             4567                 4567" in text
    assert text.rpartition(")")[2].split()[16] == "7"


@as_root
def test_another_user(world: World) -> None:
    world.state_dir.parent.chmod(0o755)
    attempt = world.start("id -u; id -g; id -G; echo $USER $HOME; echo x > /dev/stderr; umask", user="nobody", dir="/")
    assert world.end(attempt).exit_code == 0
    nobody = pwd.getpwnam("nobody")
    groups = " ".join(map(str, os.getgrouplist("nobody", nobody.pw_gid)))
    told = [str(nobody.pw_uid), str(nobody.pw_gid), groups, f"nobody {nobody.pw_dir}", "x"]
    assert world.log(attempt).splitlines()[:5] == told
    assert world.log_path(attempt).stat().st_uid == 0
    # The same shim goes on with jobs of root.
    assert world.output("id -u; echo y > /dev/stderr").split() == ["0", "y"]


@as_root
def test_another_user_is_judged_by_his_own_rights(world: World) -> None:
    locked = world.state_dir / "locked"
    locked.mkdir(mode=0o700)
    ending = world.run("true", user="nobody", dir=str(locked))
    assert ending.cause is Cause.UNSTARTABLE
    assert "cannot enter folder" in ending.text


# ---- output --------------------------------------------------------------------------------------


def test_reopening_stderr_keeps_the_log_whole(world: World) -> None:
    text = world.output("echo one; echo two >&2; echo three > /dev/stderr; echo four > /dev/stdout; echo five")
    assert text == "one\ntwo\nthree\nfour\nfive\n"


def test_what_was_written_last_is_in_the_log(world: World) -> None:
    text = world.output("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done")
    assert text == "".join(f"line {i}\n" for i in range(5000))


def test_beyond_log_max_is_dropped_and_counted(world: World) -> None:
    attempt = world.start("head -c 30000000 /dev/zero; echo end", log_max_bytes=1_000_000)
    ending = world.end(attempt)
    assert (ending.exit_code, ending.log_dropped_bytes) == (0, 29_000_004)
    content = world.log_path(attempt).read_bytes()
    assert content[:1_000_000] == bytes(1_000_000)
    assert content[1_000_000:] == b"\n[jobd: 29000004 bytes dropped; log_max is 1000000]\n"


def test_without_a_log_the_job_goes_on(world: World) -> None:
    world.log_path(1).parent.mkdir(parents=True)
    target = world.state_dir / "target"
    target.write_text("mine")
    world.log_path(1).symlink_to(target)  # a link is not followed
    ending = world.run("head -c 300000 /dev/zero")
    assert (ending.exit_code, ending.log_dropped_bytes) == (0, 300_000)
    assert target.read_text() == "mine"


def test_a_log_is_there_and_private_from_the_start(world: World) -> None:
    attempt = world.start("sleep 1000")
    world.hear(Started, attempt)
    assert world.log_path(attempt).stat().st_mode & 0o777 == 0o640
    assert world.log_path(attempt).parent.stat().st_mode & 0o777 == 0o750


def test_an_outsider_that_keeps_the_output_does_not_write_into_the_next_log(world: World) -> None:
    first = world.start("exec sleep 1000")
    pid = world.hear(Started, first).pid
    held = os.open(f"/proc/{pid}/fd/1", os.O_RDWR)
    world.halt(first, Halt.KILL)
    world.end(first)
    os.write(held, b"late words")
    second = world.start("echo mine")
    world.end(second)
    os.close(held)
    assert world.log(second) == "mine\n"
    assert world.log(first) == ""


# ---- the tree ------------------------------------------------------------------------------------

#: Exits at once; what it leaves has its own session and no parent in the job.
DAEMONISE = "nohup setsid sh -c '(sh -c \"while [ ! -e go ]; do sleep 0.02; done; echo last\" &) &' &"


def test_tree_goes_on_until_the_last_process_ends(world: World) -> None:
    attempt = world.start(f"{DAEMONISE} echo first; exit 5", env={"MARK": str(world.state_dir)})
    main = world.hear(Started, attempt).pid
    until(lambda: not lives(main))
    until(lambda: processes_with(f"MARK={world.state_dir}"))
    world.loop.turn(0.0)
    assert not any(isinstance(e, Exited) for e in world.of(attempt))
    (world.state_dir / "go").touch()
    ending = world.end(attempt)
    assert (ending.cause, ending.exit_code) == (Cause.EXITED, 5)
    assert world.log(attempt) == "first\nlast\n"


def test_main_ends_with_its_first_process(world: World) -> None:
    attempt = world.start(f"{DAEMONISE} exit 5", finish=Finish.MAIN, env={"MARK": str(world.state_dir)})
    ending = world.end(attempt)
    assert (ending.cause, ending.exit_code) == (Cause.EXITED, 5)
    assert not processes_with(f"MARK={world.state_dir}")


STUBBORN = """
trap '' TERM HUP INT
setsid sh -c 'trap "" TERM; while :; do sleep 1000; done' &
(setsid nohup sh -c 'sleep 1000 & wait' > /dev/null 2>&1 &) &
sleep 1000 & kill -STOP $!
./chain &
touch ready
while :; do sleep 1000; done
"""


@pytest.mark.parametrize("how", [Halt.STOP, Halt.KILL])
def test_stop_leaves_nothing_and_touches_nothing_else(world: World, how: Halt) -> None:
    script(world.state_dir / "chain", "#!/bin/sh\ntrap '' TERM\n./chain &\n")  # each forks the next, and exits
    canary = subprocess.Popen(["sleep", "1000"], env={"MARK": "canary"})
    try:
        attempt = world.start(STUBBORN, stop_timeout_s=0.2, env={"MARK": str(world.state_dir)})
        world.turn_until((world.state_dir / "ready").exists)
        world.halt(attempt, how)
        ending = world.end(attempt)
        assert (ending.cause, ending.signal) == (Cause.STOPPED, signal.SIGKILL)
        assert not processes_with(f"MARK={world.state_dir}")
        assert canary.poll() is None
    finally:
        canary.kill()
        canary.wait()


def test_stop_is_polite_first(world: World) -> None:
    attempt = world.start("trap 'echo bye; exit 3' TERM; touch ready; while :; do sleep 0.02; done")
    world.turn_until((world.state_dir / "ready").exists)
    world.halt(attempt, Halt.STOP)
    ending = world.end(attempt)
    assert (ending.cause, ending.exit_code) == (Cause.STOPPED, 3)
    assert "bye" in world.log(attempt)


def test_stop_signal_is_the_configured_one(world: World) -> None:
    attempt = world.start("exec sleep 1000", stop_signal=signal.SIGUSR1)
    world.hear(Started, attempt)
    world.halt(attempt, Halt.STOP)
    assert world.end(attempt).signal == signal.SIGUSR1


def test_a_stopped_process_is_continued_to_hear_the_stop(world: World) -> None:
    attempt = world.start("trap 'exit 3' TERM; kill -STOP $$; while :; do sleep 0.02; done")
    pid = world.hear(Started, attempt).pid
    until(lambda: state_of(pid) == "T")
    world.halt(attempt, Halt.STOP)
    assert world.end(attempt).exit_code == 3


def test_stop_right_after_start_is_not_lost(world: World) -> None:
    for way in ({}, {"limits": Limits(open_files=200)}):
        attempt = world.start("sleep 1000", **way)  # type: ignore[arg-type]
        world.halt(attempt, Halt.STOP)
        assert world.end(attempt).cause is Cause.STOPPED


def test_stop_of_leftovers_keeps_the_exit_code(world: World) -> None:
    attempt = world.start("sleep 1000 & exit 6")
    main = world.hear(Started, attempt).pid
    until(lambda: not lives(main))
    world.halt(attempt, Halt.STOP)
    ending = world.end(attempt)
    assert (ending.cause, ending.exit_code) == (Cause.STOPPED, 6)


def test_a_stopped_shell_does_not_go_on_to_its_next_command(world: World) -> None:
    for _ in range(20):
        attempt = world.start("touch ready; sleep 1000; touch next")
        world.turn_until((world.state_dir / "ready").exists)
        world.halt(attempt, Halt.STOP)
        assert world.end(attempt).signal == signal.SIGTERM
        (world.state_dir / "ready").unlink()
    assert not (world.state_dir / "next").exists()


def test_kill_hastens_a_stop(world: World) -> None:
    attempt = world.start("trap '' TERM; touch ready; while :; do sleep 1000; done", stop_timeout_s=1000)
    world.turn_until((world.state_dir / "ready").exists)
    world.halt(attempt, Halt.STOP)
    world.halt(attempt, Halt.KILL)
    ending = world.end(attempt)
    assert (ending.cause, ending.signal) == (Cause.STOPPED, signal.SIGKILL)


def test_timeout_ends_the_attempt(world: World) -> None:
    ending = world.run("trap '' TERM; while :; do sleep 0.02; done", timeout_s=0.1, stop_timeout_s=0.1)
    assert (ending.cause, ending.signal) == (Cause.TIMEOUT, signal.SIGKILL)


def test_timeout_counts_leftovers_too(world: World) -> None:
    ending = world.run("sleep 1000 & exit 0", timeout_s=0.1)
    assert (ending.cause, ending.exit_code) == (Cause.TIMEOUT, 0)


def test_wind_down_lets_it_end_by_itself(world: World) -> None:
    attempt = world.start("touch ready; while [ ! -e go ]; do sleep 0.02; done; exit 4", finish=Finish.REPORT)
    world.turn_until((world.state_dir / "ready").exists)
    world.halt(attempt, Halt.WIND_DOWN)
    (world.state_dir / "go").touch()
    ending = world.end(attempt)
    assert (ending.cause, ending.exit_code) == (Cause.EXITED, 4)


def test_wind_down_stops_what_does_not(world: World) -> None:
    attempt = world.start("trap '' TERM; while :; do sleep 0.02; done", finish=Finish.REPORT, stop_timeout_s=0.1)
    world.hear(Started, attempt)
    world.halt(attempt, Halt.WIND_DOWN)
    ending = world.end(attempt)
    assert (ending.cause, ending.signal) == (Cause.EXITED, signal.SIGKILL)


def test_a_job_of_many_processes_is_stopped_whole(world: World) -> None:
    attempt = world.start(
        "i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done; touch ready; wait",
        env={"MARK": str(world.state_dir)},
    )
    world.turn_until((world.state_dir / "ready").exists)
    until(lambda: len(processes_with(f"MARK={world.state_dir}")) > 200)
    world.halt(attempt, Halt.STOP)
    ending: Ending = world.end(attempt)
    assert (ending.cause, ending.signal) == (Cause.STOPPED, signal.SIGTERM)
    assert not processes_with(f"MARK={world.state_dir}")
