"""A store in memory: it keeps copies of what the engine saves, as the real one keeps rows.

Also holds the two promises of the journal to their word: ids without gaps, and the state of every
job is the fold of its entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from supervisor.core.engine import Engine
from supervisor.core.events import (
    Decision,
    DeleteAttempt,
    DeleteHold,
    Journal,
    SaveAttempt,
    SaveHold,
    SaveNode,
    SaveRun,
)
from supervisor.core.model import ACTIVE, Attempt, Hold, JournalEntry, Node, Run, Snapshot, State

NodeKey = tuple[int, str]  # run id, job


class FakeStore:
    def __init__(self) -> None:
        self.runs: dict[int, Run] = {}
        self.nodes: dict[NodeKey, Node] = {}
        self.attempts: dict[int, Attempt] = {}
        self.holds: dict[str, Hold] = {}
        self.journal: list[JournalEntry] = []
        self.folded: dict[tuple[str, str], State] = {}  # run name, job -> state, by the journal alone
        self.folded_runs: dict[str, str] = {}  # run name -> state, by the journal alone
        self.last_attempt_id = 0
        self.answers: dict[str, Any] = {}  # request id -> what it was answered

    def has_run(self, name: str) -> bool:
        return any(run.name == name for run in self.runs.values())

    def commit(self, decisions: Iterable[Decision]) -> None:
        entries: list[JournalEntry] = []
        for decision in decisions:
            match decision:
                case SaveRun(run):
                    self.runs[run.id] = replace(run)
                case SaveNode(node):
                    self.nodes[node.run_id, node.job] = replace(node)
                case SaveAttempt(attempt):
                    self._save_attempt(attempt)
                case DeleteAttempt(attempt_id):
                    assert self.attempts.pop(attempt_id).state in ACTIVE, f"attempt {attempt_id} was final"
                case SaveHold(hold):
                    self.holds[hold.name] = replace(hold)
                case DeleteHold(name):
                    del self.holds[name]
                case Journal(entry):
                    entries.append(replace(entry))
        for entry in entries:
            self._fold(entry)

    def _save_attempt(self, attempt: Attempt) -> None:
        known = self.attempts.get(attempt.id)
        if known is not None and known.state not in ACTIVE:
            assert attempt.state is known.state, f"attempt {attempt.id} was {known.state}, became {attempt.state}"
        assert known is not None or attempt.id > self.last_attempt_id, f"attempt id {attempt.id} was given twice"
        self.attempts[attempt.id] = replace(attempt)
        self.last_attempt_id = max(self.last_attempt_id, attempt.id)

    def _fold(self, entry: JournalEntry) -> None:
        last = self.journal[-1].id if self.journal else 0
        assert entry.id == last + 1, f"the journal goes from {last} to {entry.id}"
        self.journal.append(entry)
        if entry.run is not None and entry.job is None:
            told = entry.kind.removeprefix("run_")
            self.folded_runs[entry.run] = "running" if told in ("started", "created", "resumed") else told
        if entry.kind in ("run_started", "run_created"):
            [run] = [run for run in self.runs.values() if run.name == entry.run]
            state = State.QUEUED if entry.kind == "run_started" else State.STOPPED
            self.folded |= {(run.name, job.name): state for job in run.dag.jobs}
        elif entry.kind in set(State) and entry.run is not None and entry.job is not None:
            self.folded[entry.run, entry.job] = State(entry.kind)

    def snapshot(self) -> Snapshot:
        """What a daemon loads: unfinished runs, the newest of each dag, the newest attempts of their jobs."""
        newest = {run.dag.name: run.id for run in sorted(self.runs.values(), key=lambda run: run.id)}
        loaded = {run.id for run in self.runs.values() if run.finished_at is None} | set(newest.values())
        nodes = [replace(node) for key, node in sorted(self.nodes.items()) if key[0] in loaded]
        return Snapshot(
            runs=[replace(self.runs[run_id]) for run_id in loaded],
            nodes=nodes,
            attempts=[replace(self.attempts[node.attempt_id]) for node in nodes if node.attempt_id],
            holds=[replace(hold) for hold in self.holds.values()],
            last_event_id=self.journal[-1].id if self.journal else 0,
            last_run_id=max(self.runs, default=0),
            last_attempt_id=self.last_attempt_id,
        )

    def snapshot_of(self, run_name: str) -> Snapshot:
        """One run, which a daemon wants to look at again; nothing if there is none of this name."""
        runs = [replace(run) for run in self.runs.values() if run.name == run_name]
        nodes = [replace(node) for node in self.nodes.values() if runs and node.run_id == runs[0].id]
        return Snapshot(runs, nodes, [replace(self.attempts[node.attempt_id]) for node in nodes if node.attempt_id])

    def check_equals(self, engine: Engine) -> None:
        """The engine remembers what was saved, and the journal tells the same."""
        assert engine.holds == self.holds, f"held is {self.holds}, in memory {engine.holds}"
        for live_run in engine.registry:
            run = live_run.run
            assert self.runs[run.id] == run, f"saved {self.runs[run.id]}, in memory {run}"
            assert {job.name for job in run.dag.jobs} == set(live_run.nodes)
            for name, live in live_run.nodes.items():
                saved = self.nodes[run.id, name]
                assert saved == live.node, f"saved {saved}, in memory {live.node}"
                told = self.folded[run.name, name]
                assert told is saved.state, f"{run.name} {name} is {saved.state}, by the journal {told}"
                if live.attempt is not None:
                    # The start of an attempt under way is saved with its end (Attempts.started).
                    exact = live.attempt.state not in ACTIVE
                    kept = self.attempts[live.attempt.id]
                    kept = kept if exact else replace(kept, started_at=live.attempt.started_at)
                    assert kept == live.attempt, f"saved {kept}, in memory {live.attempt}"
