"""Many small worlds around the engine, each from a seed; after every step all promises must hold.

A failure names its seed. More of them: `JOBD_SIM_SEEDS=20000 pytest tests/core/test_simulation.py`;
one of them: `JOBD_SIM_FIRST=SEED JOBD_SIM_SEEDS=1 …`.
"""

from __future__ import annotations

import os

import pytest

from tests.core.simulation import simulate

FIRST_SEED = int(os.environ.get("JOBD_SIM_FIRST", "0"))
SEEDS = int(os.environ.get("JOBD_SIM_SEEDS", "300"))
STEPS = 200


def test_every_promise_holds_in_every_world() -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
        try:
            simulate(seed, STEPS)
        except Exception as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")
