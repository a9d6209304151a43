"""The figures of a sweep, and how they are printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.sweep.scenarios import SCENARIOS
from tests.sweep.sweep import Outcome, Report


@dataclass(slots=True)
class Figures:
    """`hits`: by kind of fault and scenario; `states`: what attempts came to, by kind of fault."""

    hits: dict[str, Counter[str]] = field(default_factory=lambda: {"kills": Counter(), "errors": Counter()})
    states: dict[str, Counter[str]] = field(default_factory=dict)
    ended: int = 0
    missed: int = 0
    problems: int = 0
    slowest_s: float = 0.0

    def take(self, report: Report, say: Callable[[str], None]) -> None:
        """Count it, and say at once what is wrong."""
        for outcome in report.outcomes:
            self._count(outcome)
            for problem in outcome.problems:
                say(f"{outcome.point}: {problem}\n    it is: {outcome.point.at[:150]}")
        for violation in report.rest:
            self.problems += 1
            say(f"after {len(report.outcomes)} points: {violation}")
        if not report.is_well:
            say(f"    the notes are in {report.folder}/notes")

    def _count(self, outcome: Outcome) -> None:
        kind = outcome.point.kind
        self.slowest_s = max(self.slowest_s, outcome.took_s)
        self.problems += bool(outcome.problems)
        if kind and not outcome.hit:
            self.missed += 1
        elif kind:
            self.hits[kind][str(outcome.point.scenario)] += 1
            was_unborn = outcome.state == "lost" and outcome.point.scenario.begins and not outcome.ran
            state = "lost, though nothing ran" if was_unborn else outcome.state or "unknown"
            self.states.setdefault(kind, Counter())[state] += 1
            self.ended += kind == "errors" and outcome.died

    @property
    def total(self) -> int:
        """Faults that were hit."""
        return sum(hits.total() for hits in self.hits.values())

    def lines(self) -> Iterator[str]:
        """For people."""
        kills, errors = self.hits["kills"], self.hits["errors"]
        yield f"{'step/victim':<26}{'kills':>7}{'errors':>8}"
        for name in (name for name in SCENARIOS if kills[name] or errors[name]):
            yield f"{name:<26}{kills[name]:>7}{errors[name]:>8}"
        yield f"{'all':<26}{kills.total():>7}{errors.total():>8}"
        for kind, states in self.states.items():
            yield f"after {kind}: " + ", ".join(f"{count} {state}" for state, count in states.most_common())
        yield f"processes that ended by an error: {self.ended}"
        yield f"calls that did not come again: {self.missed}; slowest point: {self.slowest_s:.1f} s"
        yield f"wrong: {self.problems}"
