"""Hundreds of jobs at once. Figures are the business of bench/; here it is that nothing is lost."""

from __future__ import annotations

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
