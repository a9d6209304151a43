"""The figures of a sweep, and how they are printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.sweep.sweep import Report
from tests.sweep.tracing import KILL


@dataclass(slots=True)
class Figures:
    """`points`: by scenario, how many kills and errors; `states`: what attempts came to, by kind of fault."""

    kills: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    states: dict[str, Counter[str]] = field(default_factory=dict)
    missed: int = 0
    problems: int = 0
    slowest_s: float = 0.0

    def take(self, report: Report, say: Callable[[str], None]) -> None:
        """Count it, and say at once what is wrong."""
        for outcome in report.outcomes:
            fault, name = outcome.point.fault, str(outcome.point.scenario)
            if fault and outcome.hit:
                (self.kills if fault.what == KILL else self.errors)[name] += 1
            self.missed += bool(fault and not outcome.hit)
            kind = "nothing" if not fault or not outcome.hit else "kill" if fault.what == KILL else "error"
            self.states.setdefault(kind, Counter())[outcome.state] += 1
            self.slowest_s = max(self.slowest_s, outcome.took_s)
            self.problems += bool(outcome.problems)
            for problem in outcome.problems:
                say(f"{outcome.point}: {problem}\n    at {outcome.point.at[:150]}")
        for violation in report.rest:
            self.problems += 1
            say(f"after {len(report.outcomes)} points: {violation}")
        if report.outcomes:
            last = report.outcomes[-1].point.scenario
            say(f"[{sum(self.kills.values())} kills, {sum(self.errors.values())} errors] {last}: {report.folder}")

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{'step/victim':<26}{'kills':>7}{'errors':>8}"
        for name in sorted(self.kills.keys() | self.errors.keys()):
            yield f"{name:<26}{self.kills[name]:>7}{self.errors[name]:>8}"
        yield f"{'all':<26}{sum(self.kills.values()):>7}{sum(self.errors.values()):>8}"
        for kind, states in self.states.items():
            yield f"after {kind}: " + ", ".join(f"{count} {state or 'none'}" for state, count in states.most_common())
        yield f"never reached {self.missed}, slowest {self.slowest_s:.1f} s, wrong {self.problems}"
