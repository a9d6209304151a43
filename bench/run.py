"""jobd against ninja, make and a bare spawn loop, and what jobd costs. One command: python bench/run.py

Prints Markdown tables; --json FILE writes the same figures with each round. The subjects take turns within a
round, so that a slow minute of the machine hits all of them; medians over the rounds are compared.
Needs jobd's libraries (the .venv of etc/quickstart.sh has them). ninja, make and strace are used where found.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from daemon import Daemon
from peers import COMMAND, Graph, available, chain, fan, layers

AT_ONCE = 4
SLEEPERS = 300
GIVE_UP_S = 20.0
SETTLE_S = 2.0
IDLE_S = 10.0


@dataclass
class Figure:
    """One measured thing. `value` is the median of `rounds`."""

    name: str
    unit: str
    how: str  # what was run
    aim: str = ""
    rounds: list[float] = field(default_factory=list)

    @property
    def value(self) -> float:
        return statistics.median(self.rounds)


def toml(dags: dict[str, Graph], command: str = COMMAND, at_once: int = AT_ONCE) -> str:
    """A configuration of these dags. The names of all their jobs must differ."""
    lines = [f"[defaults]\ncommand = {json.dumps(command)}"]
    for dag, graph in dags.items():
        lines.append(f"[dags.{dag}]\nmax_running = {at_once}")
        lines += [f'[jobs.{job}]\ndag = "{dag}"\nneeds = {json.dumps(needs)}' for job, needs in graph.items()]
    return "\n".join(lines) + "\n"


def compare(graphs: dict[str, Graph], rounds: int) -> dict[str, dict[str, Figure]]:
    """Each graph (its name is its dag's) under each subject, in turns. Returns graph -> subject -> ms a job."""
    peers = available()
    table: dict[str, dict[str, Figure]] = {}
    with Daemon(toml(graphs)) as jobd:
        for _ in range(rounds):
            for name, graph in graphs.items():
                row = table.setdefault(name, {})
                took_s = {"jobd": jobd.run(name)} | {peer: run(graph, AT_ONCE) for peer, run in peers.items()}
                for subject, seconds in took_s.items():
                    how = f"{name}: {len(graph)} x sh -c '{COMMAND}', {AT_ONCE} at once, under {subject}"
                    figure = row.setdefault(subject, Figure(f"{name}, {subject}", "ms/job", how))
                    figure.rounds.append(1000 * seconds / len(graph))
    return table


def growth(sizes: list[int], rounds: int) -> list[Figure]:
    """Cost per job of dags of different sizes, a fresh jobd for each."""
    how = f"layers of 100, two needs each, {AT_ONCE} at once"
    figures = [Figure(f"dag of {size}", "ms/job", how) for size in sizes]
    for _ in range(rounds):
        for size, figure in zip(sizes, figures, strict=True):
            with Daemon(toml({"grown": layers(size)})) as jobd:
                figure.rounds.append(1000 * jobd.run("grown") / size)
    ratio = [figures[-1].value / figures[0].value]
    return [*figures, Figure(f"{sizes[-1]} against {sizes[0]} jobs", "x", "the two lines above", "about 1", ratio)]


def idle_memory(jobs: int, rounds: int) -> list[Figure]:
    rss = Figure("memory, idle, resident", "MB", f"jobd and helpers, {jobs} jobs defined, fresh", "60 or less")
    pss = Figure("memory, idle, proportional", "MB", rss.how)
    for _ in range(rounds):
        with Daemon(toml({"idle": fan(jobs)})) as jobd:
            jobd.call("ping")
            for figure, megabytes in zip((rss, pss), jobd.memory_mb(), strict=True):
                figure.rounds.append(megabytes)
    return [rss, pss]


def sleepers(jobs: int) -> list[Figure]:
    """Many jobs at once: start, ask, stop, and silence afterwards."""
    with Daemon(toml({"sleepers": fan(jobs)}, command="sleep 30", at_once=0)) as jobd:
        _, pss_before = jobd.memory_mb()
        began = time.monotonic()
        jobd.call("start", names=["sleepers"])
        while any(job["pid"] is None for job in jobd.call("status")["jobs"]):
            if time.monotonic() - began > GIVE_UP_S:
                raise RuntimeError(f"not all of {jobs} jobs have started within {GIVE_UP_S:.0f} s")
            time.sleep(0.02)
        started = Figure(f"{jobs} jobs running", "s", f"{jobs} x sleep 30, until status has a pid of each", "3 or less")
        started.rounds.append(time.monotonic() - began)

        status = Figure(
            f"status of {jobs} jobs", "ms", "jobctl status --json, start of the client included", "under 100"
        )
        status.rounds += [1000 * jobd.jobctl("status", "--json") for _ in range(9)]
        _, pss = jobd.memory_mb()
        each = Figure(
            "memory for a running job", "MB", "PSS of jobd and helpers, the job itself not counted", "2 or less"
        )
        each.rounds.append((pss - pss_before) / jobs)

        processes = jobd.jobs()
        began = time.monotonic()
        jobd.call("stop", names=["sleepers"])
        jobd.call("wait", names=["sleepers"])
        stopped = Figure(
            f"{jobs} jobs stopped", "s", "stop, until the answer of wait", rounds=[time.monotonic() - began]
        )
        left = Figure("processes left after stop", "", f"of {len(processes)} seen before", "0")
        left.rounds.append(sum(process.is_running() for process in processes) + len(jobd.jobs()))
        return [started, status, each, stopped, left, *idle_system_calls(jobd)]


def idle_system_calls(jobd: Daemon) -> list[Figure]:
    if not shutil.which("strace"):
        print("strace is not here: idle system calls are not measured (apt-get install strace)\n")
        return []
    time.sleep(SETTLE_S)
    how = f"strace -c -f on jobd and helpers for {IDLE_S:.0f} s, {SETTLE_S:.0f} s after the stop"
    return [Figure("system calls when idle", "", how, "0", [jobd.system_calls(IDLE_S)])]


def print_comparison(table: dict[str, dict[str, Figure]]) -> None:
    subjects = list(next(iter(table.values())))
    print(f"| ms a job (jobs/s), `sh -c '{COMMAND}'`, {AT_ONCE} at once | {' | '.join(subjects)} |")
    print("|---" + "|---:" * len(subjects) + "|")
    for name, row in table.items():
        cells = [f"{figure.value:.2f} ({1000 / figure.value:,.0f})" for figure in row.values()]
        print(f"| {name} | {' | '.join(cells)} |")
        ratios = [f"{row['jobd'].value / row[subject].value:.2f}" for subject in subjects[1:]]
        print(f"| jobd's time against it | 1 | {' | '.join(ratios)} |")
    print("\njobd commits every step durably before it acts; the others keep no durable record.\n")


def print_figures(figures: list[Figure]) -> None:
    print("| figure | median | unit | aim | what was run |\n|---|---:|---|---|---|")
    for figure in figures:
        print(f"| {figure.name} | {figure.value:,.2f} | {figure.unit} | {figure.aim} | {figure.how} |")


def machine() -> dict[str, str]:
    hardware = f"{os.cpu_count()} processors, {psutil.virtual_memory().total / 1e9:.1f} GB"
    return {"hardware": hardware, "system": platform.platform(), "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure jobd, and others on the same jobs.")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (default 5)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, one round: does it work at all?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures and their rounds here")
    options = parser.parse_args()
    rounds, share = (1, 10) if options.quick else (options.rounds, 1)

    about = machine()
    print("; ".join(f"{key}: {value}" for key, value in about.items()), end="\n\n")
    for name in {"ninja", "make"} - available().keys():
        print(f"{name} is not here, so it is not measured (apt-get install ninja-build make)\n")
    graphs = {f"chain-{200 // share}": chain(200 // share), f"fan-{2000 // share}": fan(2000 // share)}
    table = compare(graphs, rounds)
    print_comparison(table)
    figures = growth([1000 // share, 10_000 // share], min(rounds, 3))
    figures += idle_memory(SLEEPERS // share, min(rounds, 3)) + sleepers(SLEEPERS // share)
    print_figures(figures)
    if options.json:
        flat = [figure for row in table.values() for figure in row.values()] + figures
        document = {"machine": about, "figures": [asdict(figure) | {"value": figure.value} for figure in flat]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
