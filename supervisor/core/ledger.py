"""What one turn of the engine saves, does and tells; numbers the journal. Knows no rule of jobs."""

from __future__ import annotations

from typing import Any

from supervisor.core.events import Decision, Journal, Now, Refusal, Reply, SaveNode, SaveRun
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import JournalEntry


class Ledger:
    """Filled during a turn, closed at its end. A run or node that changed often is saved once."""

    def __init__(self) -> None:
        self.now = Now(0.0, 0.0)
        self.last_event_id = 0
        self._decisions: list[Decision] = []
        self._runs: dict[LiveRun, None] = {}
        self._nodes: dict[LiveNode, None] = {}
        self._replies: list[Decision] = []

    def decide(self, decision: Decision) -> None:
        self._decisions.append(decision)

    def save_run(self, live_run: LiveRun) -> None:
        self._runs[live_run] = None

    def save_node(self, live: LiveNode) -> None:
        self._nodes[live] = None

    def reply(self, token: int, answer: dict[str, Any] | Refusal) -> None:
        self._replies.append(Reply(token, answer))

    def note(
        self,
        kind: str,
        *,
        run: str | None = None,
        dag: str | None = None,
        job: str | None = None,
        attempt: int | None = None,
        text: str = "",
        by: str | None = None,
    ) -> None:
        """Write one entry of the journal."""
        self.last_event_id += 1
        entry = JournalEntry(
            id=self.last_event_id,
            at=self.now.wall,
            kind=kind,
            run=run,
            dag=dag,
            job=job,
            attempt=attempt,
            text=text,
            by=by,
        )
        self._decisions.append(Journal(entry))

    def note_run(self, kind: str, live_run: LiveRun, text: str = "", by: str | None = None) -> None:
        self.note(kind, run=live_run.run.name, dag=live_run.dag.name, text=text, by=by)

    def note_job(self, kind: str, live: LiveNode, text: str = "", by: str | None = None) -> None:
        number = live.attempt.number if live.attempt else None
        self.note(kind, run=live.run.run.name, dag=live.job.dag, job=live.job.name, attempt=number, text=text, by=by)

    def close(self) -> list[Decision]:
        """All of the turn: what is saved and done, in order, replies last. The next turn begins empty."""
        decisions = self._decisions
        decisions += [SaveRun(live_run.run) for live_run in self._runs]
        decisions += [SaveNode(live.node) for live in self._nodes]
        decisions += self._replies
        self._decisions, self._runs, self._nodes, self._replies = [], {}, {}, []
        return decisions
