"""Hundreds of jobs at once. Figures are the business of bench/; here it is that nothing is lost."""

from __future__ import annotations

import os
import signal

import psutil

from tests.end_to_end.conftest import Jobd


def test_three_hundred_jobs_run_at_once_and_stop_leaves_no_process(jobd: Jobd) -> None:
    jobd.start("".join(f"[jobs.sleeper{n}]\ncommand = 'sleep 600; true'\n" for n in range(300)))
    jobd.ctl("start")
    pids: list[int] = []
    while len(pids) < 300:  # each call asks the daemon anew; there is no event for "its process has begun"
        jobs = jobd.jobs()
        pids = [job["pid"] for job in jobs.values() if job["pid"]]
    assert len(set(pids)) == 300
    children = [child.pid for pid in pids for child in psutil.Process(pid).children()]
    jobd.ctl("stop", "--wait")
    assert set(jobd.states().values()) == {"stopped"}
    assert not [pid for pid in (*pids, *children) if psutil.pid_exists(pid)]
    jobd.ctl("start")
    jobd.ctl("stop", "--now", "--wait")


def test_a_wide_dag_runs_every_job_once(jobd: Jobd) -> None:
    job = "[jobs.job{n}]\ncommand = 'echo {n} >> ledger'\nneeds = ['first']\n"
    last = f"[jobs.last]\ncommand = 'echo last >> ledger'\nneeds = {[f'job{n}' for n in range(500)]}\n"
    jobs = "".join(job.format(n=n) for n in range(500))
    jobd.start("[daemon]\nmax_running = 8\n[jobs.first]\ncommand = 'echo first >> ledger'\n" + jobs + last)
    jobd.ctl("start", "--wait")
    ledger = (jobd.folder / "ledger").read_text().split()
    assert ledger[0] == "first"
    assert ledger[-1] == "last"
    assert sorted(ledger[1:-1], key=int) == [str(n) for n in range(500)]


def test_a_killed_daemon_with_three_hundred_jobs_finds_them_all_again(jobd: Jobd) -> None:
    """One of them ends in the gap; all others go on, and none is started again."""
    count = 300
    os.mkfifo(jobd.folder / "last")
    gates = "while [ ! -e {gate} ]; do sleep 1; done"
    jobs = "".join(
        f"[jobs.job{n}]\ncommand = '''echo {n} >> ledger; {gates.format(gate='go')}; exit {n % 100}'''\n"
        for n in range(count - 1)
    )
    jobd.start(jobs + "[jobs.gap]\ncommand = 'read x < last; echo said; exit 33'\n")
    jobd.ctl("start")
    while len([pid for job in jobd.jobs().values() if (pid := job["pid"])]) < count:
        pass  # each call asks the daemon anew
    before = {name: job["pid"] for name, job in jobd.jobs().items()}
    gap = psutil.Process(before["gap"])
    assert jobd.stop(signal.SIGKILL) == -signal.SIGKILL
    (jobd.folder / "last").write_text("go\n")
    psutil.wait_procs([gap], timeout=30)
    assert not gap.is_running()
    jobd.start()
    jobd.await_event(lambda event: event["job"] == "gap" and event["kind"] == "failed")
    jobs_now = jobd.jobs()
    ended = jobs_now.pop("gap")
    assert (ended["state"], ended["exit_code"]) == ("failed", 33)
    assert {name: job["pid"] for name, job in jobs_now.items()} == {n: p for n, p in before.items() if n != "gap"}
    (jobd.folder / "go").touch()
    jobd.ctl("wait", code=1)
    codes = {name: job["exit_code"] for name, job in jobd.jobs().items() if name != "gap"}
    assert codes == {f"job{n}": n % 100 for n in range(count - 1)}
    assert sorted(map(int, (jobd.folder / "ledger").read_text().split())) == list(range(count - 1))
    assert jobd.ctl("logs", "gap").out == "said\n"
