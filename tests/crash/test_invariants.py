"""The checks of the crash fuzz find what they look for: true evidence passes, each lie is found."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash import dags
from tests.crash.casualties import Casualties
from tests.crash.dags import JobSpec, Setup
from tests.crash.evidence import Attempt, Event, Evidence, Node
from tests.crash.family import Identity, Process, Sighting
from tests.crash.invariants import check
from tests.crash.ledger import Key, Line
from tests.crash.operator import Order

RUN = "alpha@2026-03-01T02:00"
FIRST, SECOND = (RUN, "first", 1), (RUN, "second", 1)


def job(name: str, **fields: object) -> JobSpec:
    plain: dict[str, object] = {"name": name, "dag": "alpha", "body": "quick", "seconds": 0.0, "codes": (0,)}
    return JobSpec(**(plain | fields))  # type: ignore[arg-type]


def line(place: int, what: str, key: Key, value: int | None = None) -> Line:
    return Line(what, key, 100, float(place), value, place)


def attempt(number: int, key: Key, **fields: object) -> Attempt:
    plain: dict[str, object] = {"state": "success", "reason": "", "exit_code": 0, "signal": None, "duration_s": 1.0}
    names = {"id": number, "run": key[0], "job": key[1], "number": key[2], "log": "no log"}
    return Attempt(**(plain | names | fields))  # type: ignore[arg-type]


def journal(*entries: tuple[str, Key | None]) -> list[Event]:
    return [
        Event(
            id=number,
            at=0.0,
            kind=kind,
            run=RUN,
            job=key[1] if key else None,
            attempt=key[2] if key else None,
            text="",
            by=None,
        )
        for number, (kind, key) in enumerate(entries, 1)
    ]


@pytest.fixture
def truth(tmp_path: Path) -> Evidence:
    """Two jobs, one after the other, in a pool of one slot."""
    first = job("first", pool="narrow")
    second = job("second", pool="narrow", needs=((("first", "success"),),))
    started = ("run_started", None)
    ran = [(kind, key) for key in (FIRST, SECOND) for kind in ("running", "success")]
    (tmp_path / "no log").write_text(first.output())
    return Evidence(
        setup=Setup({"first": first, "second": second}, {"alpha": 0}, {"narrow": 1}, 0),
        lines=[
            *(line(0, "began", FIRST), line(1, "exits", FIRST, 0)),
            *(line(2, "began", SECOND), line(3, "exits", SECOND, 0)),
        ],
        attempts=[attempt(1, FIRST), attempt(2, SECOND)],
        nodes=[Node(run=RUN, job=name, state="success", attempts=1) for name in ("first", "second")],
        events=journal(started, *ran),
        casualties=Casualties(),
        logs=tmp_path,
    )


def kinds(evidence: Evidence) -> set[str]:
    return {violation.kind for violation in check(evidence)}


def test_the_truth_passes(truth: Evidence) -> None:
    assert check(truth) == []


def test_an_attempt_that_was_executed_twice_is_found(truth: Evidence) -> None:
    truth.lines.append(line(4, "began", SECOND))
    assert "doubled" in kinds(truth)


def test_an_execution_without_a_row_is_found(truth: Evidence) -> None:
    truth.lines.append(line(4, "began", (RUN, "second", 2)))
    assert "unrecorded" in kinds(truth)


@pytest.mark.parametrize(
    "lie",
    [
        {"state": "failed", "exit_code": 3},
        {"state": "failed", "exit_code": None, "signal": 9},
        {"state": "failed", "exit_code": None, "reason": "timed out after 1s"},
        {"state": "stopped", "exit_code": None},
        {"state": "skipped", "exit_code": 0},
        {"state": "running"},
    ],
)
def test_an_outcome_that_the_ledger_contradicts_is_found(truth: Evidence, lie: dict[str, object]) -> None:
    truth.attempts[1] = replace(truth.attempts[1], **lie)  # type: ignore[arg-type]
    assert "invented" in kinds(truth)


def test_a_success_without_an_end_in_the_ledger_is_found(truth: Evidence) -> None:
    del truth.lines[3]
    assert kinds(truth) == {"invented"}


JOBD, FORKSERVER, SHIM = (Identity(pid, 1) for pid in (10, 11, 12))


@pytest.fixture
def lost(truth: Evidence) -> Evidence:
    """The second job, which ends 3 s after boot, is lost."""
    truth.casualties.saw(Sighting(parents={JOBD: None, FORKSERVER: JOBD, SHIM: FORKSERVER}))
    truth.attempts[1] = replace(truth.attempts[1], state="lost", exit_code=None)
    truth.nodes[1] = replace(truth.nodes[1], state="lost")
    truth.events[-1] = replace(truth.events[-1], kind="lost")
    truth.casualties.killed(SHIM, {SECOND}, at=2.0)
    truth.casualties.killed(JOBD, set(), at=2.0)
    return truth


def test_lost_is_no_excuse_while_the_forkserver_lives(lost: Evidence) -> None:
    assert kinds(lost) == {"lost"}


def test_lost_is_excused_if_all_who_could_reap_it_had_gone(lost: Evidence) -> None:
    lost.casualties.killed(FORKSERVER, set(), at=2.0)
    assert kinds(lost) == set()


def test_lost_is_no_excuse_if_the_forkserver_was_killed_after_the_job_had_ended(lost: Evidence) -> None:
    lost.casualties.killed(FORKSERVER, set(), at=9.0)
    assert kinds(lost) == {"lost"}


@pytest.mark.parametrize(("asleep_at", "expected"), [(2.5, set()), (8.0, {"lost"})])
def test_who_was_stopped_before_the_end_and_never_went_on_could_not_reap(
    lost: Evidence, asleep_at: float, expected: set[str]
) -> None:
    lost.casualties.stopped(FORKSERVER, asleep_at)
    lost.casualties.killed(FORKSERVER, set(), asleep=True, at=9.0)
    assert kinds(lost) == expected


def test_who_was_stopped_and_went_on_could_reap(lost: Evidence) -> None:
    lost.casualties.stopped(FORKSERVER, 2.5)
    lost.casualties.killed(FORKSERVER, set(), asleep=False, at=9.0)
    assert kinds(lost) == {"lost"}


def test_a_shim_that_was_killed_after_the_job_had_ended_is_no_excuse(truth: Evidence, lost: Evidence) -> None:
    lost.casualties.killed(FORKSERVER, set(), at=2.0)
    lost.lines[3] = replace(lost.lines[3], at=1.0)
    assert kinds(lost) == {"lost"}


def test_a_gap_in_the_events_is_found(truth: Evidence) -> None:
    truth.events[-1] = replace(truth.events[-1], id=9)
    assert kinds(truth) == {"event ids"}


def test_a_state_that_is_not_the_fold_of_the_journal_is_found(truth: Evidence) -> None:
    truth.nodes[1] = replace(truth.nodes[1], state="stopped")
    assert kinds(truth) == {"fold"}


def test_a_second_end_of_an_attempt_is_found(truth: Evidence) -> None:
    truth.events += journal(*[("x", None)] * 5, ("running", SECOND), ("success", SECOND))[5:]
    assert "final" in kinds(truth)


def test_a_start_before_its_need_is_found(truth: Evidence) -> None:
    truth.events[2] = replace(truth.events[2], kind="failed")
    assert "rules" in kinds(truth)


def test_a_full_pool_that_takes_one_more_is_found(truth: Evidence) -> None:
    truth.lines[1:3] = [line(1, "began", SECOND), line(2, "exits", FIRST, 0)]
    assert {"limits", "alive"} <= kinds(truth)


def test_a_retry_too_many_is_found(truth: Evidence) -> None:
    again = [("running", SECOND), ("queued", SECOND), ("retrying", SECOND), ("running", (RUN, "second", 2))]
    truth.events[3:] = journal(*[("x", None)] * 3, *again)[3:]
    assert "rules" in kinds(truth)


def test_an_acknowledged_command_without_effect_is_found(truth: Evidence) -> None:
    truth.orders.append(Order("one", "start", {"names": ["alpha"]}, [{"changed": []}]))
    assert kinds(truth) == {"commands"}


def test_a_repeated_command_with_two_effects_is_found(truth: Evidence) -> None:
    answer: dict[str, object] = {"changed": []}
    truth.orders.append(Order("one", "start", {"names": ["alpha"]}, [answer, answer]))
    noted = [replace(event, text="start alpha") for event in journal(*[("command", None)] * 7)[5:]]
    truth.events += noted
    assert kinds(truth) == {"commands"}


@pytest.mark.parametrize("text", ["", "hello\n", "hello\nhello\nbye\n"])
def test_a_log_that_is_not_whole_is_found(truth: Evidence, text: str) -> None:
    assert truth.logs is not None
    (truth.logs / "no log").write_text(text)
    assert kinds(truth) == {"log"}


def test_the_same_seed_makes_the_same_dags() -> None:
    assert dags.make(random.Random(7)) == dags.make(random.Random(7))
    assert dags.make(random.Random(7)) != dags.make(random.Random(8))


def test_a_process_that_is_a_zombie_does_not_live() -> None:
    assert not Process(Identity(1, 1), 1, "Z", "sh").lives
