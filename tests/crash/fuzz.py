"""Many worlds, one after the other, each from a seed of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.crash.killer import KINDS
from tests.crash.world import Report, World

#: Attacks on one world.
KILLS_PER_WORLD = 25


def parse_kinds(text: str) -> set[str]:
    """`jobd,shim` or `all`. Raises ValueError."""
    kinds = set(text.split(","))
    if kinds == {"all"}:
        return set(KINDS)
    if unknown := kinds - set(KINDS):
        raise ValueError(f"no kind of process {', '.join(sorted(unknown))}: choose of {', '.join(KINDS)} or all")
    return kinds


def fuzz(folder: Path, kills: int, seed: int, kinds: set[str], per_world: int = KILLS_PER_WORLD) -> Iterator[Report]:
    """Reports as they come. The folder of a world in which all went well is removed."""
    while kills > 0:
        report = World(folder / f"w{seed}", seed, kinds).run(min(kills, per_world))
        if report.violations:
            (report.folder / "story.txt").write_text("\n\n".join(report.stories))
        else:
            shutil.rmtree(report.folder)
        yield report
        kills -= max(1, report.figures.total_kills)
        seed += 1


def explain(report: Report, kinds: set[str], say: Callable[[str], None] = print) -> None:
    """What was wrong, and how to see it again."""
    for violation in report.violations:
        say(f"seed {report.seed}: {violation}")
    if report.violations:
        again = f"--seed {report.seed} --kinds {','.join(sorted(kinds))}"
        say(f"  the story is in {report.folder}/story.txt; again: {again}")
