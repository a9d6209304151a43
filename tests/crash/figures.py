"""The figures of a fuzz, added up over its worlds, and how they are printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.crash.evidence import Evidence
from tests.crash.invariants import excuse, torn_logs
from tests.crash.ledger import by_attempt


@dataclass(slots=True)
class Figures:
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0  # of jobd
    executed: int = 0  # attempts that say so themselves
    outcomes: Counter[str] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)
    unknowable: Counter[str] = field(default_factory=Counter)  # lost attempts, by why nobody could know
    torn_logs: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    commands: int = 0
    unanswered: int = 0
    events: int = 0
    worst_recovery_s: float = 0.0

    def take(self, evidence: Evidence) -> None:
        """Count what one world has left."""
        self.executed += sum(line.what == "began" for line in evidence.lines)
        self.outcomes.update(attempt.state for attempt in evidence.attempts)
        told = by_attempt(evidence.lines)
        lost = [attempt for attempt in evidence.attempts if attempt.state == "lost"]
        reasons = [excuse(evidence, attempt, told.get(attempt.key, [])) for attempt in lost]
        self.unknowable.update(reason for reason in reasons if reason)
        self.torn_logs += torn_logs(evidence)
        self.commands += len(evidence.orders)
        self.unanswered += sum(not order.answers for order in evidence.orders)
        self.events += len(evidence.events)

    def add(self, other: Figures) -> None:
        self.kills += other.kills
        self.disturbances += other.disturbances
        self.unknowable += other.unknowable
        self.outcomes += other.outcomes
        self.violations += other.violations
        for name in ("starts", "executed", "torn_logs", "commands", "unanswered", "events"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.worst_recovery_s = max(self.worst_recovery_s, other.worst_recovery_s)

    @property
    def total_kills(self) -> int:
        return self.kills.total()

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"attacks by SIGKILL  {self.total_kills}"
        yield from (f"  {count:5}  {kind}" for kind, count in self.kills.most_common())
        yield f"other disturbances  {self.disturbances.total()}"
        yield from (f"  {count:5}  {kind}" for kind, count in self.disturbances.most_common())
        yield f"starts of jobd      {self.starts}, the slowest answered after {self.worst_recovery_s:.2f} s"
        yield f"commands            {self.commands}, {self.unanswered} never answered; {self.events} events"
        yield f"attempts executed   {self.executed}"
        yield from (f"  {count:5}  {outcome}" for outcome, count in self.outcomes.most_common())
        lost, others = self.outcomes["lost"], self.violations["lost"]
        yield f"lost                {lost}: {self.unknowable.total()} that nobody could know, {others} others"
        yield from (f"  {count:5}  {reason}" for reason, count in self.unknowable.most_common())
        yield f"doubled             {self.violations['doubled']}"
        yield f"invented            {self.violations['invented']}"
        yield f"logs with a gap     {self.torn_logs} (what a killed shim held, or nobody took up)"
        rest = {kind: count for kind, count in self.violations.items() if kind not in ("lost", "doubled", "invented")}
        yield f"other violations    {sum(rest.values())} {rest or ''}".rstrip()
