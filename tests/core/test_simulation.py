"""Many small worlds around the engine, each from a seed; after every step all promises must hold.

`simulation` tells the engine one thing at a time and looks closely; in `crashes` the daemon dies between
any two steps. A failure names its seed and shows the last steps.
More of them: `JOBD_SIM_SEEDS=5000 pytest tests/core/test_simulation.py`;
one of them: `JOBD_SIM_FIRST=SEED JOBD_SIM_SEEDS=1 …`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

from tests.core.crashes import survive
from tests.core.lives import STEPS_OF_A_LIFE
from tests.core.simulation import simulate

FIRST_SEED = int(os.environ.get("JOBD_SIM_FIRST", "0"))
SEEDS = int(os.environ.get("JOBD_SIM_SEEDS", "150"))
STEPS, STEPS_WITH_CRASHES = 200, 800
#: With so many worlds, the daemon must have died after every kind of step.
MANY_SEEDS = 100


def live(seed: int, world: Callable[[int], Counter[str] | None]) -> Counter[str]:
    try:
        return world(seed) or Counter()
    except Exception as error:
        trace = "\n".join(getattr(error, "__notes__", ()))
        pytest.fail(f"seed {seed}: {type(error).__name__}: {error}\n{trace}")


def test_every_promise_holds_in_every_world() -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
        live(seed, lambda seed: simulate(seed, STEPS))


def test_nothing_is_lost_doubled_or_guessed_wherever_the_daemon_dies() -> None:
    deaths: Counter[str] = Counter()
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
        deaths += live(seed, lambda seed: survive(seed, STEPS_WITH_CRASHES))
    if SEEDS >= MANY_SEEDS:
        assert deaths.keys() >= STEPS_OF_A_LIFE, f"it never died after: {STEPS_OF_A_LIFE - deaths.keys()}"
