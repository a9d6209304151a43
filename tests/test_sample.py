"""The sample: its graph is the one that was asked for, and its scripts do their work with or without jobd."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import tomli

from supervisor import config

ETC = Path(__file__).parent.parent / "etc"
RUN_DATE = "2026-01-02"

#: The dependency graph of the tool that jobd replaces: job -> what it needs.
NEEDS = {
    "job_1": ["job_2", "job_4"],
    "job_2": ["job_3", "job_7"],
    "job_3": [],
    "job_4": ["job_5", "job_6", "job_9"],
    "job_5": ["job_8", "job_9"],
    "job_6": ["job_7"],
    "job_7": ["job_8"],
    "job_8": [],
    "job_9": [],
}
#: What these jobs are called in the sample.
NAMES = {
    "job_1": "publish-report",
    "job_2": "match-config",
    "job_3": "extract-config",
    "job_4": "check-totals",
    "job_5": "match-docs",
    "job_6": "sum-sections",
    "job_7": "clean-packages",
    "job_8": "extract-packages",
    "job_9": "extract-docs",
}
#: All the programs that the scripts may use: POSIX, and in every busybox.
TOOLS = "sh awk basename cat cp cut date dirname du find head ls mkdir mv sort uname uniq wc".split()  # noqa: SIM905


def sample() -> dict[str, Any]:
    return tomli.loads((ETC / "jobs.toml").read_text())


def argv(job: dict[str, Any]) -> list[str]:
    command = job["command"]
    return command if isinstance(command, list) else shlex.split(command)


def run_job(job: dict[str, Any], shell: str, out: Path, path: str) -> subprocess.CompletedProcess[str]:
    """Run one script as jobd would: in etc/, with little environment."""
    env = {"PATH": path, "INVENTORY_OUT": str(out), "JOBD_RUN_DATE": RUN_DATE}
    return subprocess.run([shell, *argv(job)], cwd=ETC, env=env, capture_output=True, text=True, timeout=60)


def run_all(shell: str, out: Path, path: str = "/usr/local/bin:/usr/bin:/bin") -> str:
    """Run the scripts one after another, needs first. Returns the report."""
    jobs = sample()["jobs"]
    for name in TopologicalSorter({name: job.get("needs", []) for name, job in jobs.items()}).static_order():
        result = run_job(jobs[name], shell, out, path)
        assert result.returncode == 0, f"{name}: {result.stdout}{result.stderr}"
    return (out / "report.md").read_text()


def test_the_graph_is_the_one_asked_for() -> None:
    needs = {name: set(job.get("needs", [])) for name, job in sample()["jobs"].items()}
    assert needs == {NAMES[job]: {NAMES[need] for need in upstreams} for job, upstreams in NEEDS.items()}


def test_all_jobs_are_of_one_dag() -> None:
    tables = sample()
    assert {job["dag"] for job in tables["jobs"].values()} == set(tables["dags"]) == {"inventory"}


def test_jobd_finds_nothing_wrong_with_it() -> None:
    checked = config.check(ETC / "jobs.toml")
    assert (checked.errors, checked.warnings) == ([], [])


def test_jobd_finds_nothing_wrong_with_the_example_in_the_readme(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", (ETC.parent / "README.md").read_text(), re.DOTALL)
    assert example
    (tmp_path / "jobs.toml").write_text(example[1])
    checked = config.check(tmp_path / "jobs.toml")
    assert (checked.errors, checked.warnings) == ([], [])


@pytest.mark.parametrize("name", NAMES.values())
def test_the_script_can_be_run_as_it_is(name: str) -> None:
    script = ETC / argv(sample()["jobs"][name])[0]
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/sh"
    assert "set -eu" in lines


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
def test_the_scripts_yield_the_report(shell: str, tmp_path: Path) -> None:
    if not (program := shutil.which(shell)):
        pytest.skip(f"no {shell} on this machine")
    report = run_all(program, tmp_path)
    assert report.startswith("# What is installed on ")
    assert RUN_DATE in report
    assert "## Largest packages" in report
    packages = (tmp_path / RUN_DATE / "packages.tsv").read_text().splitlines()
    assert f"- {len(packages)} packages, " in report


def test_a_second_pass_changes_nothing(tmp_path: Path) -> None:
    first = run_all("/bin/sh", tmp_path)
    assert run_all("/bin/sh", tmp_path) == first
    assert not list(tmp_path.rglob("*.part"))


def test_it_works_on_a_machine_without_a_package_manager(tmp_path: Path) -> None:
    """PATH leads to a folder that has the plain tools and nothing else."""
    if Path("/lib/apk/db/installed").exists():
        pytest.skip("apk's database is read without any program of apk")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        program = shutil.which(tool)
        assert program, f"this machine has no {tool}"
        (tools / tool).symlink_to(program)
    report = run_all(str(tools / "sh"), tmp_path / "out", path=str(tools))
    assert "| share | " in report


def test_the_check_fails_when_something_got_lost(tmp_path: Path) -> None:
    run_all("/bin/sh", tmp_path)
    matched = tmp_path / RUN_DATE / "packages.tsv"
    matched.write_text("".join(matched.read_text().splitlines(keepends=True)[1:]))
    result = run_job(sample()["jobs"]["check-totals"], "/bin/sh", tmp_path, os.defpath)
    assert result.returncode == 1
    assert "WRONG   packages" in result.stdout


def test_a_stage_that_fails_leaves_its_last_file_whole(tmp_path: Path) -> None:
    run_all("/bin/sh", tmp_path)
    work = tmp_path / RUN_DATE
    before = (work / "packages.tsv").read_text()
    (work / "packages.raw").write_text("nonsense\n")
    result = run_job(sample()["jobs"]["clean-packages"], "/bin/sh", tmp_path, os.defpath)
    assert result.returncode != 0
    assert (work / "packages.tsv").read_text() == before
