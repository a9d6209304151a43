"""Who was killed, and which attempts' outcomes nobody can know for that."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from tests.crash.family import Identity, Sighting
from tests.crash.ledger import Key

#: Whoever reaps a process, or hands it on, has done it so long after its end.
REAPED_S = 0.25

#: Why an outcome is not known.
ORPHANED = "its shim and all above had gone before it ended"
ASLEEP = "who was to reap it was stopped before it ended, and killed before it went on"
NAMELESS = "its shim was killed before it could record the main process"
UNDATED = "all who could reap it have gone, and its end cannot be dated"


@dataclass(slots=True)
class Casualties:
    """The status of a job's main process is lost if its shim and all above were gone *when it ended*.

    That they went later is no excuse: they could have told. Times are seconds since boot, as in the ledger.
    """

    kills: Counter[str] = field(default_factory=Counter)  # attacks with SIGKILL
    disturbances: Counter[str] = field(default_factory=Counter)  # all others
    _parents: dict[Identity, Identity | None] = field(default_factory=dict)
    _gone: dict[Identity, float] = field(default_factory=dict)
    _asleep_since: dict[Identity, float] = field(default_factory=dict)
    _died_asleep: set[Identity] = field(default_factory=set)
    _nameless: set[Key] = field(default_factory=set)
    _shims: dict[Key, list[Identity]] = field(default_factory=dict)

    def saw(self, seen: Sighting) -> None:
        """Remember who had made whom: it cannot be seen any more once the parent is gone."""
        for who, parent in seen.parents.items():
            self._parents.setdefault(who, parent)

    def killed(
        self,
        who: Identity,
        attempts: set[Key],
        nameless: Collection[Key] = (),
        *,
        asleep: bool = False,
        at: float | None = None,
    ) -> None:
        """`attempts`: those that a shim had; `nameless`: it could not yet record their main process.

        `asleep`: it was stopped when the blow came.
        """
        self.left(who, at)
        self._nameless.update(nameless)
        if asleep:
            self._died_asleep.add(who)
        for key in attempts:
            self._shims.setdefault(key, []).append(who)

    def left(self, who: Identity, at: float | None = None) -> None:
        """It has gone, or was asked to."""
        self._gone.setdefault(who, _now() if at is None else at)

    def stopped(self, who: Identity, at: float | None = None) -> None:
        """It was stopped, and cannot reap until it goes on."""
        self._asleep_since[who] = _now() if at is None else at

    def excuse(self, key: Key, ended_at: float | None) -> str:
        """Why nobody could tell; empty: someone could. `ended_at`: of the main process, None is not known."""
        if key in self._nameless:
            return NAMELESS
        line = self._line(key)
        if not line or any(who not in self._gone for who in line):
            return ""
        if ended_at is None:
            return UNDATED
        late = [who for who in line if self._gone[who] > ended_at + REAPED_S]
        if not late:
            return ORPHANED
        return ASLEEP if all(self._slept_through(who, ended_at) for who in late) else ""

    def _slept_through(self, who: Identity, ended_at: float) -> bool:
        """From the end of the job, or before, until it was killed itself."""
        return who in self._died_asleep and self._asleep_since.get(who, float("inf")) <= ended_at + REAPED_S

    def _line(self, key: Key) -> list[Identity]:
        """Its first shim, and who had made that, and so on up."""
        line = []
        who: Identity | None = self._shims[key][0] if key in self._shims else None
        while who is not None:
            line.append(who)
            who = self._parents.get(who)
        return line

    def shims_killed(self, key: Key) -> int:
        """How many of an attempt's shims were killed."""
        return len(self._shims.get(key, ()))


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
