"""Random dags and commands, by a seeded `Random`: the raw material of the simulations.

Names of jobs begin with the letter of their dag and bear a number; a job needs only jobs with smaller
numbers, so definitions of different times never make a cycle. All durations are multiples of 1/64 s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from supervisor.core import commands
from supervisor.core.model import Dag, Definitions, Finish, Job, Need, Outcome

#: How jobs finish, as often as each is here.
FINISHES = (Finish.TREE, Finish.TREE, Finish.MAIN, Finish.REPORT)


def definitions(choose: Random, finishes: Sequence[Finish] = FINISHES) -> Definitions:
    dags = {}
    for name in ("north", "south")[: choose.randint(1, 2)]:
        jobs: list[Job] = []
        for number in range(choose.randint(1, 9)):
            jobs.append(_job(choose, name, f"{name[0]}{number}", [job.name for job in jobs], finishes))
        limit = choose.choice([0, 0, 1, 2])
        dags[name] = Dag(name=name, autostart=choose.random() < 0.2, max_running=limit, jobs=tuple(jobs))
    return Definitions(dags=dags, pools={"db": choose.randint(1, 3)}, max_running=choose.choice([0, 0, 1, 2, 4]))


def _job(choose: Random, dag: str, name: str, earlier: list[str], finishes: Sequence[Finish]) -> Job:
    outcomes = [*[Outcome.SUCCESS] * 4, Outcome.FAILED, Outcome.DONE]
    needs = tuple(
        tuple(Need(each, choose.choice(outcomes)) for each in choose.sample(earlier, choose.choice([1, 1, 1, 2])))
        for _ in range(choose.choice([0, 1, 1, 2, 3]))
        if len(earlier) > 1
    )
    return Job(
        name=name,
        dag=dag,
        command="true",
        dir="/",
        needs=needs,
        enabled=choose.random() < 0.95,
        retries=choose.choice([0, 0, 1, 2]),
        retry_delay_s=choose.choice([0.0, 5.0, 30.0]),
        retry_backoff=choose.choice([1.0, 2.0]),
        retry_max_delay_s=choose.choice([None, 40.0]),
        retry_codes=choose.choice([None, None, (75,)]),
        retry_lost=choose.random() < 0.3,
        skip_codes=(3,),
        timeout_s=choose.choice([None, 100.0]),
        finish=choose.choice(finishes),
        pool=choose.choice([None, None, "db"]),
        slots=choose.choice([1, 1, 2, 3]),
        priority=choose.choice([0, 0, 0, 1]),
    )


def names(choose: Random, known: Sequence[str]) -> tuple[str, ...]:
    """None, one or two of those that are known; now and then one that nobody has."""
    return tuple(choose.choices([*known, *known, *known, "nobody"], k=choose.choice([0, 1, 1, 1, 2])))


def command(
    choose: Random, known: Sequence[str], held: Sequence[str], wall: float, run: str | None = None
) -> commands.Command:
    """Any command but report and wait. `known`: names of dags and jobs, in `run` if that is given."""
    target: dict[str, Any] = {"names": names(choose, known), "run": run, "dry_run": choose.random() < 0.1}
    kinds: list[tuple[int, Callable[[], commands.Command]]] = [
        (8, lambda: commands.Start(**target, force=choose.random() < 0.2)),
        (1, lambda: commands.Start(**target, date=choose.choice(["2026-11-20", "soon"]))),
        (4, lambda: commands.Stop(**target, now=choose.random() < 0.3)),
        (4, lambda: commands.Retry(**target, downstream=choose.random() < 0.4)),
        (3, lambda: commands.Restart(**target)),
        (2, lambda: commands.Hold(**target, until=choose.choice([None, wall + 50]))),
        (3, lambda: commands.Release(**target | {"names": tuple(held) or target["names"]})),
        (2, lambda: commands.Skip(**target)),
        (2, lambda: commands.Mark(**target, outcome=choose.choice(["success", "failed", "lost"]))),
        (1, lambda: commands.Shutdown(**choose.choice([{}, {"stop_jobs": True}, {"drain": True}]))),
    ]
    [make] = choose.choices([make for _, make in kinds], [weight for weight, _ in kinds])
    return make()
