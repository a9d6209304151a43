"""A fault at any system call of any step: nothing lost, nothing doubled, nothing invented.

A sample of the sweep: JOBD_SWEEP_POINTS sets how many points (default 20), JOBD_SWEEP_SEED which.
`python -m tests.sweep` does them all.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sweep.figures import Figures
from tests.sweep.scenarios import SCENARIOS
from tests.sweep.sweep import sweep
from tests.sweep.tracing import Fault, Tracer, hindrance

POINTS = int(os.environ.get("JOBD_SWEEP_POINTS", "20"))
SEED = int(os.environ.get("JOBD_SWEEP_SEED", random.randrange(10**6)))
MAKE_FOLDERS = """
import os
input()
for name in "abc":
    try:
        os.mkdir(name)
    except OSError as error:
        print(error.strerror, flush=True)
"""

pytestmark = pytest.mark.skipif(bool(hindrance()), reason=hindrance() or "")


@pytest.mark.parametrize(
    ("what", "made", "said"), [("KILL", ["a"], ""), ("ENOSPC", ["a", "c"], "No space left on device\n")]
)
def test_a_fault_hits_one_call_of_one_process(tmp_path: Path, what: str, made: list[str], said: str) -> None:
    folder, trace = tmp_path / "folder", tmp_path / "trace"
    folder.mkdir()
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKE_FOLDERS], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    tracer = Tracer(maker.pid, trace, Fault("mkdir", 2, what))
    try:
        assert maker.communicate("\n", timeout=30)[0] == said
    finally:
        tracer.end()
    assert sorted(path.name for path in folder.iterdir()) == made
    calls = [call for call in tracer.calls() if call.name == "mkdir"]
    assert [call.done for call in calls] == ([True, False] if what == "KILL" else [True, True, True])


def test_nothing_is_lost_doubled_or_invented(tmp_path: Path) -> None:
    figures, said = Figures(), [f"seed {SEED}"]
    for report in sweep(tmp_path, list(SCENARIOS.values()), {"kills", "errors"}, POINTS, SEED):
        figures.take(report, said.append)
    assert not figures.problems, "\n".join(said)
    assert figures.total >= POINTS / 2, figures
