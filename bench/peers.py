"""The same no-op jobs under others: a bare posix_spawn loop, ninja, make. Knows nothing of jobd.

A graph is a dict: job -> the jobs it needs, upstreams first. Each peer takes a graph and how many jobs may
run at once, runs `sh -c COMMAND` for each job, and returns the seconds it took.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path

Graph = dict[str, list[str]]
Peer = Callable[[Graph, int], float]

#: Needs a shell and does nothing: make and ninja would run `true` without one, and make skips `:`.
COMMAND = "exit 0"


def chain(length: int) -> Graph:
    return {f"c{i}": [f"c{i - 1}"] if i else [] for i in range(length)}


def fan(width: int) -> Graph:
    return {f"f{i}": [] for i in range(width)}


def layers(jobs: int, width: int = 100) -> Graph:
    """Layers of `width` jobs; each job needs two of the layer before."""
    graph: Graph = {}
    for i in range(jobs):
        above = i - i % width - width
        graph[f"n{i}"] = [f"n{above + i % width}", f"n{above + (i + 1) % width}"] if above >= 0 else []
    return graph


def spawn(graph: Graph, at_once: int) -> float:
    """posix_spawn and wait, nothing else: what the kernel and the shell alone cost."""
    plan = TopologicalSorter(graph)
    plan.prepare()
    ready: list[str] = []
    running: dict[int, str] = {}
    began = time.monotonic()
    while plan.is_active():
        ready += plan.get_ready()
        while ready and len(running) < at_once:
            running[os.posix_spawn("/bin/sh", ["sh", "-c", COMMAND], {})] = ready.pop()
        plan.done(running.pop(os.wait()[0]))
    return time.monotonic() - began


def ninja(graph: Graph, at_once: int) -> float:
    lines = [f"rule job\n command = {COMMAND}"]
    lines += [f"build {job}: job {' '.join(needs)}" for job, needs in graph.items()]
    return _build("build.ninja", lines, ["ninja", "--quiet", f"-j{at_once}"])


def make(graph: Graph, at_once: int) -> float:
    lines = [f".PHONY: all {' '.join(graph)}", f"all: {' '.join(graph)}"]
    lines += [f"{job}: {' '.join(needs)}\n\t@{COMMAND}" for job, needs in graph.items()]
    return _build("Makefile", lines, ["make", "--silent", f"-j{at_once}", "all"])


def _build(name: str, lines: list[str], command: list[str]) -> float:
    with tempfile.TemporaryDirectory(prefix="jobd-bench-") as folder:
        Path(folder, name).write_text("\n".join(lines) + "\n")
        began = time.monotonic()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - began


def available() -> dict[str, Peer]:
    """Those that this machine has, by name."""
    peers: dict[str, Peer] = {"posix_spawn": spawn}
    peers |= {name: peer for name, peer in (("ninja", ninja), ("make", make)) if shutil.which(name)}
    return peers
