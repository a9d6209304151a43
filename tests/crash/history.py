"""The journal folded: the state of every job after each event, and the rules that each event must keep.

An independent reading of the rules, in a few lines: it shares no code with the daemon.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.crash.dags import JobSpec, Setup
from tests.crash.evidence import Event

ACTIVE = frozenset({"running", "stopping"})
ENDED = frozenset({"success", "failed", "lost", "skipped"})
STATES = ACTIVE | ENDED | {"stopped", "queued", "blocked"}

#: outcome that is asked for -> states of the upstream that meet it
MET = {"success": {"success"}, "failed": {"failed", "lost"}, "done": ENDED}


class Fold:
    """Feed it the events in order by `apply`."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.states: dict[tuple[str, str], str] = {}
        self._retries: dict[tuple[str, str], int] = {}
        self._was_stopping: set[tuple[str, str]] = set()

    def state_of(self, event: Event) -> str | None:
        """The state of the job that an event is about, before it."""
        return self.states.get((event.run or "", event.job or ""))

    def apply(self, event: Event) -> Iterator[str]:
        """Take in an event. What is wrong with it comes back."""
        if event.kind in ("run_created", "run_started"):
            assert event.run is not None
            dag = event.run.partition("@")[0]
            for job in self._setup.jobs.values():
                if job.dag == dag:
                    self.states[event.run, job.name] = "queued" if event.kind == "run_started" else "stopped"
        elif event.run is not None and event.job is not None:
            node = event.run, event.job
            if event.kind == "retrying":
                self._retries[node] = self._retries.get(node, 0) + 1
            elif event.kind in STATES:
                yield from self._check(event, node)
                self.states[node] = event.kind

    def _check(self, event: Event, node: tuple[str, str]) -> Iterator[str]:
        before, spec = self.states.get(node), self._setup.jobs[node[1]]
        if event.kind == "stopping":
            self._was_stopping.add(node)  # and may be asked to run again, which is not noted until then
        elif event.kind == "running":
            self._was_stopping.discard(node)
        tries = self._retries.get(node, 0)
        if event.kind == "running":
            yield from self._check_start(event, spec)
        elif event.kind == "queued" and before in ENDED | {"stopped"}:
            if before == "lost" and event.by is None and node not in self._was_stopping:
                if not spec.retry_lost:
                    yield "a lost job is started again, and nobody asked for it"
            else:
                self._retries[node] = 0
        elif event.kind == "queued" and before in ACTIVE and event.attempt is not None and tries >= spec.retries:
            yield f"retried more than {spec.retries} times"
        elif event.kind == "failed" and before == "running" and tries < spec.retries:
            yield f"failed after {tries} of {spec.retries} retries"

    def _check_start(self, event: Event, spec: JobSpec) -> Iterator[str]:
        assert event.run is not None
        for group in spec.needs:
            if not any(self.states[event.run, upstream] in MET[outcome] for upstream, outcome in group):
                yield f"started, but what it needs has not happened: {group}"
        running = [self._setup.jobs[job] for (_, job), state in self.states.items() if state in ACTIVE]
        for name, used, limit in self._setup.usage([*running, spec]):
            if used > limit:
                yield f"started, though {name} takes {limit} only"
