"""`python -m tests.sweep`: a fault at every system call of every step, and what jobd made of it.

Exit code 1 if anything was wrong. The folder of a world in which something was is kept.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.sweep.figures import Figures
from tests.sweep.points import Point
from tests.sweep.scenarios import SCENARIOS
from tests.sweep.sweep import do_all, sweep
from tests.sweep.tracing import Fault, hindrance


def main() -> int:
    options = _options()
    if why := hindrance():
        print(f"nothing can be traced here: {why}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))  # so that nothing is left behind
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sweep-"))
    scenarios = [scenario for name, scenario in SCENARIOS.items() if options.only in name]
    figures, began_at = Figures(), time.monotonic()
    print(f"folder {folder}")
    if options.point:
        reports = do_all(folder, [Point(scenario, options.point) for scenario in scenarios])
    else:
        kinds = {"kills", "errors"} if options.faults == "all" else {options.faults}
        reports = sweep(folder, scenarios, kinds, options.count, options.seed)
    for report in reports:
        figures.take(report, say)
        last = report.outcomes[-1].point.scenario if report.outcomes else "nothing"
        say(f"{time.monotonic() - began_at:5.0f} s: {figures.total} faults, now at {last}")
    print("\n".join([*figures.lines(), f"took {time.monotonic() - began_at:.0f} s"]))
    return 1 if figures.problems else 0


def say(text: str) -> None:
    print(text, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    parser.add_argument("--only", default="", help="scenarios with this in their names (STEP/VICTIM)")
    parser.add_argument("--faults", choices=("kills", "errors", "all"), default="all")
    parser.add_argument("--count", type=int, help="about so many points, evenly spread (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument("--point", type=Fault.parse, help="this one only, as it was printed: CALL:NTH:FAULT")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
