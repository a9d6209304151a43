"""Whatever is killed, at whatever instant: nothing lost, nothing doubled, nothing invented.

JOBD_CRASH_KILLS sets how often (default 30), JOBD_CRASH_SEED from where. `python -m tests.crash` does more of it.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.crash.fuzz import explain, fuzz, parse_kinds

KILLS = int(os.environ.get("JOBD_CRASH_KILLS", "30"))
SEED = int(os.environ.get("JOBD_CRASH_SEED", random.randrange(10**6)))
WORLDS = 3
EVERYTHING = parse_kinds("all")


@pytest.mark.parametrize("world", range(WORLDS))
def test_nothing_is_lost_doubled_or_invented(tmp_path: Path, world: int) -> None:
    kills = -(-KILLS // WORLDS)
    said: list[str] = []
    for report in fuzz(tmp_path, kills, SEED + 1000 * world, EVERYTHING, kills):
        explain(report, EVERYTHING, said.append)
    assert not said, "\n".join(said)
