"""What happened, in order, from three sides: the attacker's notes, the jobs' ledger, jobd's journal."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tests.crash.evidence import Event
from tests.crash.invariants import Violation
from tests.crash.ledger import Line

#: A story without an attempt in it has so many of the last entries.
MAX_ENTRIES = 60


class Story:
    """All times are seconds since the story began."""

    def __init__(self) -> None:
        self._began_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._wall_began_at = time.time()
        self._notes: list[tuple[float, str]] = []

    def note(self, text: str) -> None:
        self._notes.append((time.clock_gettime(time.CLOCK_BOOTTIME) - self._began_at, text))

    def tell(self, violation: Violation, lines: Iterable[Line], events: Iterable[Event]) -> str:
        """All entries about the job and the attacks near them."""
        key = violation.key
        entries = [(at, f"  {text}") for at, text in self._notes]
        if key is not None:
            about = [line for line in lines if line.key[:2] == key[:2]]
            entries += [(line.at - self._began_at, f"ledger   {line}") for line in about]
            journal = [event for event in events if (event.run, event.job) == key[:2]]
        else:
            journal = list(events)[-MAX_ENTRIES:]
        entries += [(event.at - self._wall_began_at, f"journal  {_text(event)}") for event in journal]
        told = [f"{at:8.3f}  {text}" for at, text in sorted(entries)]
        return "\n".join([str(violation), *told])


def _text(event: Event) -> str:
    subject = " ".join(str(part) for part in (event.run, event.job, event.attempt) if part is not None)
    by = f" (by {event.by})" if event.by else ""
    return f"#{event.id} {event.kind}: {subject}: {event.text}{by}"
