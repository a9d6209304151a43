"""The jobs of the sweep: one dag for each, and what its attempts must come to. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tests.crash.dags import FLOOD_LINES, HANG_S, JobSpec, Setup
from tests.crash.ledger import JOB_SH

#: No success, so that one that is invented is seen.
CODE = 3

#: Sourced by every job. `gate` waits until the sweep lets this job go on.
SWEEP_SH = f"""{JOB_SH}
gate() {{ while [ ! -e "gate.$JOBD_JOB" ]; do sleep 0.01; done; }}
"""


@dataclass(frozen=True, slots=True)
class Job:
    """`state`: what it comes to if nothing interferes. `spec` is for the invariants of the crash fuzz."""

    name: str
    body: str
    state: str = "failed"
    finish: str = "tree"
    timeout_s: float | None = None
    extra: str = ""

    @property
    def dag(self) -> str:
        return f"dag-{self.name}"

    @property
    def spec(self) -> JobSpec:
        known = "flood" if "seq" in self.body else "quick"
        return JobSpec(name=self.name, dag=self.dag, body=known, seconds=0, codes=(CODE,), timeout_s=self.timeout_s)

    def toml(self) -> str:
        lines = [
            f"[dags.{self.dag}]",
            f"[jobs.{self.name}]",
            f'dag = "{self.dag}"',
            f"command = '''. ./sweep.sh; say began; echo hello; {self.body}'''",
            f'finish = "{self.finish}"',
            "stop_timeout = 0.1",
        ]
        if self.timeout_s is not None:
            lines.append(f"timeout = {self.timeout_s}")
        return "\n".join([*lines, self.extra]) + "\n"


JOBS = {
    job.name: job
    for job in (
        Job("warm", f"exit_as {CODE}"),
        Job("quick", f"exit_as {CODE}"),
        Job("forked", f"exit_as {CODE}", extra="limits = { open_files = 512 }"),
        Job("flood", f"seq 1 {FLOOD_LINES}; exit_as {CODE}"),
        Job("gated", f"gate; exit_as {CODE}"),
        Job("leaver", f"( gate; say left ) & exit_as {CODE}"),
        Job("mainly", f"sleep {HANG_S} & exit_as {CODE}", finish="main"),
        Job("late", f"sleep {HANG_S}", timeout_s=0.15),
        Job("hang", f"sleep {HANG_S}", state="stopped"),
        Job("deaf", f"trap '' TERM; say deaf; sleep {HANG_S}", state="stopped"),
    )
}


def setup() -> Setup:
    return Setup({name: job.spec for name, job in JOBS.items()}, {job.dag: 0 for job in JOBS.values()}, {}, 0)


def toml() -> str:
    return "".join(job.toml() for job in JOBS.values())
