"""`python -m tests.crash --kills 500`: attack jobd, and print what it made of it. Exit code 1 if anything was wrong."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.figures import Figures
from tests.crash.fuzz import KILLS_PER_WORLD, explain, fuzz, parse_kinds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="attacks in all (default 100)")
    parser.add_argument("--seed", type=int, help="of the first world (default: random)")
    parser.add_argument("--kinds", type=parse_kinds, default="all", help="jobd,forkserver,shim or all (default)")
    parser.add_argument("--per-world", type=int, default=KILLS_PER_WORLD, help="attacks on one daemon's state")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    folder = options.folder or Path(tempfile.mkdtemp(prefix="crash-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # so that nothing of the worlds is left
    total, began_at = Figures(), time.monotonic()
    print(f"seed {seed}, folder {folder}")
    for report in fuzz(folder, options.kills, seed, options.kinds, options.per_world):
        total.add(report.figures)
        explain(report, options.kinds)
        verdict = f"{len(report.violations)} violations" if report.violations else "all well"
        told = f"{report.figures.executed} attempts, {report.figures.starts} starts of jobd, {verdict}"
        print(f"[{total.total_kills}/{options.kills}] seed {report.seed}: {told}", flush=True)
    print("\n".join([*total.lines(), f"took                {time.monotonic() - began_at:.0f} s"]))
    return 1 if total.violations else 0


if __name__ == "__main__":
    sys.exit(main())
