"""What must hold whatever was killed. Pure: evidence in, violations out.

The jobs' own ledger is the truth. jobd's journal and rows are held against it, and against each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tests.crash.dags import POLITE_CODE, JobSpec
from tests.crash.evidence import Attempt, Evidence
from tests.crash.history import ACTIVE, ENDED, Fold
from tests.crash.ledger import Key, Line, by_attempt

#: A timeout may come a little early by the clock of whoever looks.
CLOCK_SLACK_S = 0.05
#: What a FIFO holds, and what a shim reads of it at once.
FIFO_BYTES = 2 * 65536


@dataclass(frozen=True, slots=True)
class Violation:
    """`kind` is counted: doubled, invented, lost, … `key`: the attempt it is about, if it is about one."""

    kind: str
    text: str
    key: Key | None = None

    def __str__(self) -> str:
        about = "" if self.key is None else f" {self.key[0]} {self.key[1]} attempt {self.key[2]}:"
        return f"[{self.kind}]{about} {self.text}"


def check(evidence: Evidence) -> list[Violation]:
    """All of them, on what is left in the end."""
    return [
        *check_executions(evidence),
        *check_outcomes(evidence),
        *check_journal(evidence),
        *check_limits(evidence),
        *check_order(evidence),
        *check_commands(evidence),
        *check_logs(evidence),
    ]


# ---- 1: at most one exec, none without a row -----------------------------------------------------


def check_executions(evidence: Evidence) -> Iterator[Violation]:
    known = {attempt.key for attempt in evidence.attempts}
    began = Counter(line.key for line in evidence.lines if line.what == "began")
    for key, count in began.items():
        if count > 1:
            yield Violation("doubled", f"was executed {count} times", key)
    for key in {line.key for line in evidence.lines} - known:
        yield Violation("unrecorded", "was executed, and no row knows it", key)
    numbers: dict[tuple[str, str], list[int]] = {}
    for attempt in evidence.attempts:
        numbers.setdefault((attempt.run, attempt.job), []).append(attempt.number)
    for node in evidence.nodes:
        found = numbers.get((node.run, node.job), [])
        if sorted(found) != list(range(1, node.attempts + 1)):
            yield Violation("numbers", f"{node.run} {node.job}: {node.attempts} attempts, rows are {sorted(found)}")


# ---- 2: the outcome is the true one --------------------------------------------------------------


def check_outcomes(evidence: Evidence) -> Iterator[Violation]:
    told = by_attempt(evidence.lines)
    stopped = {(event.run, event.job, event.attempt) for event in evidence.events if event.kind == "stopping"}
    for attempt in evidence.attempts:
        lines = told.get(attempt.key, [])
        problem = _contradiction(attempt, evidence.setup.jobs[attempt.job], lines, attempt.key in stopped)
        if attempt.state == "lost" and not excuse(evidence, attempt, lines):
            yield Violation("lost", f"lost, though someone was left who could know: {attempt.reason}", attempt.key)
        if problem:
            yield Violation("invented", f"is {attempt.state} ({attempt.reason}), but {problem}", attempt.key)


def excuse(evidence: Evidence, attempt: Attempt, lines: list[Line]) -> str:
    """Why nobody could know the outcome of an attempt that is lost; empty: someone could."""
    ended_at = next((line.at for line in lines if line.what in ("exits", "killed")), None)
    return evidence.casualties.excuse(attempt.key, ended_at)


def _contradiction(attempt: Attempt, spec: JobSpec, lines: list[Line], was_stopped: bool) -> str:
    """What the ledger has to say against the outcome of an attempt; empty: nothing."""
    code = next((line.value for line in lines if line.what == "exits"), None)
    suicide = next((line.value for line in lines if line.what == "killed"), None)
    if code not in (None, spec.code(attempt.number), POLITE_CODE):
        return f"it exits {code}, and should exit {spec.code(attempt.number)}"
    if attempt.state in ACTIVE:
        return "everything has ended"
    if attempt.state == "lost":
        return ""
    if attempt.state == "stopped":
        return "" if was_stopped else "nobody stopped it"
    if attempt.state == "failed" and attempt.reason.startswith("timed out"):
        return _timeout_problem(attempt, spec)
    if code is None and suicide is None:
        return "the ledger has no end of it"
    if attempt.signal is not None:
        return "" if attempt.signal == suicide else "it was not killed by itself"
    if suicide is not None:
        return f"it was killed by signal {suicide}"
    if code != attempt.exit_code:
        return f"the ledger says exit code {code}, the row {attempt.exit_code}"
    assert code is not None
    return "" if spec.outcome(code) == attempt.state else f"exit code {code} means {spec.outcome(code)}"


def _timeout_problem(attempt: Attempt, spec: JobSpec) -> str:
    if spec.timeout_s is None:
        return "it has no timeout"
    if attempt.duration_s is not None and attempt.duration_s < spec.timeout_s - CLOCK_SLACK_S:
        return f"it ran {attempt.duration_s} s only"
    return ""


# ---- 2, 5, 6, 7: the journal ---------------------------------------------------------------------


def check_journal(evidence: Evidence) -> Iterator[Violation]:
    ids = [event.id for event in evidence.events]
    if ids != list(range(1, len(ids) + 1)):
        gaps = [each for each in range(1, len(ids) + 1) if each not in set(ids)]
        yield Violation("event ids", f"they do not rise without gaps: missing {gaps[:10]}")
    fold = Fold(evidence.setup)
    rows = {attempt.key: attempt for attempt in evidence.attempts}
    ends: dict[Key, list[str]] = {}
    for event in evidence.events:
        before = fold.state_of(event)
        for problem in fold.apply(event):
            yield Violation("rules", f"event {event.id}: {problem}", _key(event.run, event.job, event.attempt))
        key = _key(event.run, event.job, event.attempt)
        if key and before in ACTIVE and event.kind in {*ENDED, "stopped", "queued"}:
            ends.setdefault(key, []).append("failed" if event.kind == "queued" else event.kind)
    for node in evidence.nodes:
        folded = fold.states.get((node.run, node.job))
        if folded != node.state:
            yield Violation("fold", f"{node.run} {node.job} is {node.state}, the journal makes it {folded}")
    for key, attempt in rows.items():
        if ends.get(key) != [attempt.state]:
            yield Violation("final", f"the row says {attempt.state}, the journal {ends.get(key)}", key)


def _key(run: str | None, job: str | None, attempt: int | None) -> Key | None:
    return None if run is None or job is None or attempt is None else (run, job, attempt)


# ---- 5: limits, by the ledger --------------------------------------------------------------------


def check_limits(evidence: Evidence) -> Iterator[Violation]:
    """An attempt certainly ran from its first line to its last."""
    setup = evidence.setup
    last = {line.key: line.place for line in evidence.lines}
    running: set[Key] = set()
    for line in evidence.lines:
        if line.what == "began":
            running.add(line.key)
            specs = [setup.jobs[job] for _, job, _ in running]
            for name, used, limit in setup.usage(specs):
                if used > limit:
                    yield Violation("limits", f"{name} takes {limit}, {used} ran at once: {sorted(running)}", line.key)
        if last[line.key] == line.place:
            running.discard(line.key)


# ---- 3, 4: what happened before a start, by the ledger -------------------------------------------


def check_order(evidence: Evidence) -> Iterator[Violation]:
    """Nothing of an attempt that had ended comes after what was started for its end."""
    last = {line.key: line for line in evidence.lines}
    began = {line.key: line.place for line in evidence.lines if line.what == "began"}
    final_at: dict[tuple[str, str], list[Key]] = {}
    for event in evidence.events:
        key = _key(event.run, event.job, event.attempt)
        if key is None:
            continue
        run, job, _ = key
        if event.kind == "running":
            for upstream in {name for group in evidence.setup.jobs[job].needs for name, _ in group} | {job}:
                for ended in final_at.get((run, upstream), []):
                    if key in began and ended in last and last[ended].place > began[key]:
                        yield Violation("alive", f"it had ended, and said later: {last[ended]}", ended)
        elif event.kind in {*ENDED, "stopped", "queued"}:
            final_at.setdefault((run, job), []).append(key)


# ---- 8: commands ---------------------------------------------------------------------------------


def check_commands(evidence: Evidence) -> Iterator[Violation]:
    noted = Counter(event.text for event in evidence.events if event.kind == "command")
    done = Counter(order.text for order in evidence.orders if order.done)
    unsure = Counter(order.text for order in evidence.orders if not order.answers)
    for text in noted.keys() | done.keys():
        if text.startswith("shutdown"):  # not one of the orders
            continue
        if not done[text] <= noted[text] <= done[text] + unsure[text]:
            told = f"acknowledged {done[text]} times, without an answer {unsure[text]} times"
            yield Violation("commands", f"`{text}` took effect {noted[text]} times, was {told}")
    for order in evidence.orders:
        if any(answer != order.answers[0] for answer in order.answers):
            yield Violation("commands", f"{order.request_id} ({order.text}) got different answers: {order.answers}")
    yield from _check_effects(evidence)


def _check_effects(evidence: Evidence) -> Iterator[Violation]:
    """What an acknowledgement says has changed is in the journal."""
    runs = {event.run for event in evidence.events if event.kind in ("run_started", "run_created")}
    by_hand = Counter((event.run, event.job, event.kind) for event in evidence.events if event.by is not None)
    holds = Counter((event.job, event.kind) for event in evidence.events if event.kind in ("held", "released"))
    told: Counter[tuple[str, str, str]] = Counter()
    told_holds: Counter[tuple[str, str]] = Counter()
    for order in evidence.orders:
        for change in order.answers[0].get("changed", ()) if order.answers else ():
            if "run" not in change:
                told_holds[change["job"], change["to"]] += 1
            elif change["run"] not in runs:
                yield Violation("commands", f"{order.request_id} ({order.text}): there is no run {change['run']}")
            elif change["from"] not in ("stopping", "stopped"):  # a change of those may be one of a new run
                told[change["run"], change["job"], change["to"]] += 1
    found = [(what, count, by_hand[what]) for what, count in told.items()]
    for subject, count, noted in [*found, *((what, count, holds[what]) for what, count in told_holds.items())]:
        if noted < count:
            yield Violation(
                "commands", f"acknowledged {count} times, in the journal {noted} times: {' '.join(subject)}"
            )


# ---- logs ----------------------------------------------------------------------------------------


def check_logs(evidence: Evidence) -> Iterator[Violation]:
    """The log of an attempt that reached its own end is whole, but for what a killed shim had in its hands."""
    for attempt, text in whole_attempts(evidence):
        wanted = evidence.setup.jobs[attempt.job].output()
        killed = evidence.casualties.shims_killed(attempt.key)
        if text == wanted or (killed and _has_gaps_only(text, wanted, killed)):
            continue
        told = f"{len(text)} of {len(wanted)} characters, {killed} of its shims were killed"
        yield Violation("log", f"is not what the job wrote: {told}: {text[:40]!r}…{text[-40:]!r}", attempt.key)


def torn_logs(evidence: Evidence) -> int:
    """How many have a gap for that reason."""
    return sum(text != evidence.setup.jobs[attempt.job].output() for attempt, text in whole_attempts(evidence))


def whole_attempts(evidence: Evidence) -> Iterator[tuple[Attempt, str]]:
    """Those that reached their own end, with their logs."""
    ended = {line.key for line in evidence.lines if line.what == "exits"}
    stopped = {(event.run, event.job, event.attempt) for event in evidence.events if event.kind == "stopping"}
    for attempt in evidence.attempts:
        is_own_end = attempt.exit_code is not None and attempt.key in ended - stopped
        if evidence.logs is not None and is_own_end and not attempt.reason.startswith("timed out"):
            path = evidence.logs / attempt.log
            yield attempt, path.read_text() if path.exists() else ""


def _has_gaps_only(text: str, wanted: str, gaps: int) -> bool:
    """Nothing is there twice or out of order, and no more is missing than so many FIFOs hold."""
    if len(wanted) - len(text) > gaps * FIFO_BYTES:
        return False
    if gaps > 1:
        return len(text) < len(wanted)
    same = next((n for n, (a, b) in enumerate(zip(text, wanted, strict=False)) if a != b), min(len(text), len(wanted)))
    return wanted.endswith(text[same:])
