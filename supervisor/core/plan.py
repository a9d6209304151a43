"""The form of a command's plan: what would change, what would not and why, and how to do it.

Made by the planners of single commands, carried out (or, on a dry run, only shown) by `planner`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from supervisor.core.events import Refusal
from supervisor.core.live import LiveNode
from supervisor.core.model import State

#: JSON-RPC's code for parameters that make no sense.
WRONG_PARAMS = -32602

Answer = dict[str, Any]


class RefusedError(Exception):
    """Carries a refusal out of the planning; nothing has changed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refused(message: str, hint: str) -> RefusedError:
    return RefusedError(Refusal(1, "refused", message, hint))


def wrong_params(message: str, hint: str) -> RefusedError:
    return RefusedError(Refusal(WRONG_PARAMS, "wrong_params", message, hint))


@dataclass(slots=True)
class Plan:
    changed: list[dict[str, Any]] = field(default_factory=list)
    ignored: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of the answer
    new_runs: list[str] = field(default_factory=list)
    refusal: Refusal | None = None
    _acts: list[Callable[[], object]] = field(default_factory=list)

    def change(self, live: LiveNode, target: State, act: Callable[[], object]) -> None:
        self.changed.append({"job": live.job.name, "from": live.state, "to": target, "run": live.run.run.name})
        self.act(act)

    def act(self, act: Callable[[], object]) -> None:
        self._acts.append(act)

    def ignore(self, name: str, why: str) -> None:
        """It is as asked already, or does not apply; no error."""
        self.ignored.append({"job": name, "why": why})

    def refuse(self, name: str, why: str, hint: str) -> None:
        """It cannot be done; an error if nothing else is done either."""
        self.ignore(name, why)
        self.refusal = self.refusal or Refusal(1, "refused", f"{name} {why}", hint)

    def check(self) -> None:
        """Raises RefusedError if something was refused and nothing would be done."""
        if self.refusal is not None and not self._acts:
            raise RefusedError(self.refusal)

    def carry_out(self) -> None:
        for act in self._acts:
            act()

    def answer(self) -> Answer:
        """CONTRACT 5's shape; `run`: the one that goes on, None if that is none or several."""
        runs = [*(change["run"] for change in self.changed if "run" in change), *self.new_runs]
        by_dag = {run.partition("@")[0]: run for run in runs}  # a new one counts more than the one it replaces
        run = next(iter(by_dag.values())) if len(by_dag) == 1 else None
        return {"run": run, "changed": self.changed, "ignored": self.ignored, **self.extra}
