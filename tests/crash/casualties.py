"""Who was killed, and which attempts' outcomes nobody can know for that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from tests.crash.family import Identity, Sighting
from tests.crash.ledger import Key


@dataclass(slots=True)
class Casualties:
    """The status of a job's main process is lost only if its shim, the shim's parent, and so on up, are all gone.

    Or if the shim is killed in the very instant of the start, when only it knows which process that is.
    """

    by_kind: Counter[str] = field(default_factory=Counter)
    _parents: dict[Identity, Identity | None] = field(default_factory=dict)
    _gone: set[Identity] = field(default_factory=set)
    _nameless: set[Key] = field(default_factory=set)
    _shims: dict[Key, list[Identity]] = field(default_factory=dict)

    def saw(self, seen: Sighting) -> None:
        """Remember who had made whom: it cannot be seen any more once the parent is gone."""
        for who, parent in seen.parents.items():
            self._parents.setdefault(who, parent)

    def killed(self, who: Identity, attempts: set[Key], nameless: Collection[Key] = ()) -> None:
        """`attempts`: those that a shim had; `nameless`: it could not yet record their main process."""
        self._gone.add(who)
        self._nameless.update(nameless)
        for key in attempts:
            self._shims.setdefault(key, []).append(who)

    def left(self, who: Identity) -> None:
        """It went, as it was asked to."""
        self._gone.add(who)

    def excuse(self, key: Key) -> bool:
        """Whether nobody is left who could tell: its first shim and all above were killed, or the shim just then."""
        if key in self._nameless:
            return True
        shims = self._shims.get(key)
        who: Identity | None = shims[0] if shims else None
        if who is None:
            return False
        while who is not None:
            if who not in self._gone:
                return False
            who = self._parents.get(who)
        return True

    def shims_killed(self, key: Key) -> int:
        """How many of an attempt's shims were killed."""
        return len(self._shims.get(key, ()))
