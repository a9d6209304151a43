"""Random dags of real shell jobs, made from a seed, and what each attempt of a job must come to.

Every job writes the ground truth itself (see `ledger`). Pure: no file and no process here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

#: Lines that a flooding job writes: more than a FIFO holds (64 KiB).
FLOOD_LINES = 14_000
#: A job that hangs sleeps so long; only its timeout or a stop ends it.
HANG_S = 300
#: The exit code of a job that was asked to stop and does so by itself.
POLITE_CODE = 5
SUCCESS_CODE, SKIP_CODE = 0, 9
FAILURE_CODES = (1, 3, 7, 75)

#: What a job does after its first line in the ledger. `{s}` is its length in seconds, `$code` its exit code.
BODIES = {
    "quick": "exit_as $code",
    "nap": "sleep {s}; exit_as $code",
    "flood": "seq 1 {flood}; exit_as $code",
    "flood_stderr": "seq 1 {flood} > /dev/stderr; sleep {s}; exit_as $code",
    "leaver": "( sleep {s}; say left ) & exit_as $code",
    "daemon": "( setsid sh -c '. ./job.sh; sleep {s}; say left' & ); exit_as $code",
    "deaf": "trap '' TERM; sleep {s}; exit_as $code",
    "polite": f"trap 'exit_as {POLITE_CODE}' TERM; sleep {{s}} & wait $!; exit_as $code",
    "suicide": "sleep {s}; say killed 9; kill -KILL $$",
    "hang": "sleep {hang}; exit_as $code",
    "deaf_hang": "trap '' TERM; sleep {hang}; exit_as $code",
}
_USUAL_BODIES = (
    *("quick", "quick", "nap", "nap", "nap", "flood", "flood_stderr", "flood_stderr"),
    *("leaver", "leaver", "daemon", "daemon", "deaf", "deaf", "polite", "polite", "suicide"),
)
_HANGING = ("hang", "deaf_hang")
#: Bodies whose processes go on after the main one.
_OUTLIVING = ("leaver", "daemon")

Need = tuple[str, str]  # job, outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One job. `codes`: exit code of attempt 1, 2, …; the last one counts for all that follow."""

    name: str
    dag: str
    body: str
    seconds: float
    codes: tuple[int, ...]
    needs: tuple[tuple[Need, ...], ...] = ()
    retries: int = 0
    retry_delay_s: float = 0.0
    retry_lost: bool = False
    timeout_s: float | None = None
    finish: str = "tree"
    pool: str | None = None
    slots: int = 1

    def code(self, attempt: int) -> int:
        return self.codes[min(attempt, len(self.codes)) - 1]

    def outcome(self, code: int) -> str:
        """The state that an exit code means."""
        return "success" if code == SUCCESS_CODE else "skipped" if code == SKIP_CODE else "failed"

    def output(self) -> str:
        """What an attempt writes that reaches its own end."""
        lines = range(1, FLOOD_LINES + 1) if self.body.startswith("flood") else ()
        return "".join(f"{line}\n" for line in ("hello", *lines, "bye"))

    def toml(self) -> str:
        body = BODIES[self.body].format(s=f"{self.seconds:.2f}", flood=FLOOD_LINES, hang=HANG_S)
        codes = " ".join(map(str, self.codes))
        lines = [
            f"[jobs.{self.name}]",
            f'dag = "{self.dag}"',
            f"command = '''. ./job.sh; say began; echo hello; pick {codes}; {body}'''",
            f"needs = {_needs_toml(self.needs)}",
            f"retries = {self.retries}",
            f"retry_lost = {str(self.retry_lost).lower()}",
            f"skip_codes = [{SKIP_CODE}]",
            f'finish = "{self.finish}"',
            "stop_timeout = 0.3",
        ]
        if self.retries or self.retry_lost:
            lines.append(f"retry_delay = {self.retry_delay_s}")
        if self.timeout_s is not None:
            lines.append(f"timeout = {self.timeout_s}")
        if self.pool is not None:
            lines += [f'pool = "{self.pool}"', f"slots = {self.slots}"]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Setup:
    """A whole configuration. Limits: 0 = none."""

    jobs: dict[str, JobSpec]
    dags: dict[str, int]  # name -> max_running
    pools: dict[str, int]  # name -> slots
    max_running: int

    def usage(self, running: list[JobSpec]) -> Iterator[tuple[str, int, int]]:
        """Each limit: its name, how much of it these jobs use, and how much there is."""
        if self.max_running:
            yield "jobd", len(running), self.max_running
        for dag, limit in self.dags.items():
            if limit:
                yield f"dag {dag}", sum(job.dag == dag for job in running), limit
        for pool, slots in self.pools.items():
            yield f"pool {pool}", sum(min(job.slots, slots) for job in running if job.pool == pool), slots

    def toml(self) -> str:
        parts = [f"[daemon]\nmax_running = {self.max_running}\n", "[pools]\n"]
        parts += [f"{name} = {slots}\n" for name, slots in self.pools.items()]
        parts += [f"[dags.{name}]\nmax_running = {limit}\n" for name, limit in self.dags.items()]
        return "".join([*parts, *(job.toml() for job in self.jobs.values())])


def make(rng: random.Random) -> Setup:
    """A few dags with everything that may go wrong under a kill. The jobs of a swarm need nobody."""
    pools = {"narrow": 1, "wide": 3}
    jobs: dict[str, JobSpec] = {}
    dags = {name: rng.choice((0, 0, 2, 3)) for name in ("alpha", "beta", "gamma")}
    for dag in dags:
        own: list[str] = []
        is_swarm = rng.random() < 0.2
        for number in range(rng.randint(15, 25) if is_swarm else rng.randint(6, 12)):
            name = f"{dag[0]}{number}"
            jobs[name] = _job(rng, name, dag, own)
            if not is_swarm:
                own.append(name)
    return Setup(jobs, dags, pools, rng.choice((0, 0, 6)))


def _job(rng: random.Random, name: str, dag: str, earlier: list[str]) -> JobSpec:
    hangs = rng.random() < 0.08
    pool = rng.choice((None, None, None, "narrow", "wide"))
    body = rng.choice(_HANGING if hangs else _USUAL_BODIES)
    is_long = rng.random() < (0.6 if body in _OUTLIVING else 0.15)
    return JobSpec(
        name=name,
        dag=dag,
        body=body,
        seconds=rng.uniform(0.4, 1.2) if is_long else rng.uniform(0.0, 0.2),
        codes=_codes(rng),
        needs=_needs(rng, earlier),
        retries=rng.choice((0, 0, 1, 2)),
        retry_delay_s=rng.choice((0.0, 0.0, 0.1)),
        retry_lost=rng.random() < 0.3,
        timeout_s=round(rng.uniform(0.2, 0.5), 2) if hangs or rng.random() < 0.05 else None,
        finish="main" if rng.random() < 0.25 else "tree",
        pool=pool,
        slots=rng.randint(1, 3) if pool == "wide" else 1,
    )


def _codes(rng: random.Random) -> tuple[int, ...]:
    """Mostly success in the end, so that the dags go on."""
    dice = rng.random()
    if dice < 0.70:
        return (SUCCESS_CODE,)
    if dice < 0.88:
        return (rng.choice(FAILURE_CODES), SUCCESS_CODE)
    if dice < 0.95:
        return (rng.choice(FAILURE_CODES),)
    return (SKIP_CODE, SUCCESS_CODE)


def _needs(rng: random.Random, earlier: list[str]) -> tuple[tuple[Need, ...], ...]:
    """Groups of one or two, nobody twice."""
    sizes = [rng.choice((1, 1, 2)) for _ in range(rng.choice((0, 1, 1, 2)))]
    left = rng.sample(earlier, len(earlier))
    groups = [[left.pop() for _ in range(min(size, len(left)))] for size in sizes]
    return tuple(tuple((member, _outcome(rng)) for member in group) for group in groups if group)


def _outcome(rng: random.Random) -> str:
    return rng.choice(("success", "success", "success", "success", "done", "done", "done", "failed"))


def _needs_toml(needs: tuple[tuple[Need, ...], ...]) -> str:
    groups = [", ".join(f'"{job}:{outcome}"' for job, outcome in group) for group in needs]
    return "[" + ", ".join(f"[{group}]" for group in groups) + "]"
