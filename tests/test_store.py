"""The store keeps what the engine decides, over closing and opening."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.core.events import (
    DeleteAttempt,
    DeleteHold,
    Journal,
    Save,
    SaveAttempt,
    SaveHold,
    SaveNode,
    SaveRun,
)
from supervisor.core.model import (
    Attempt,
    Dag,
    Finish,
    Hold,
    Job,
    JournalEntry,
    Limits,
    Need,
    Node,
    Outcome,
    Run,
    State,
    Trigger,
)
from supervisor.store import MAX_ANSWERS, Store

JOB = Job(
    name="load",
    dag="nightly",
    command=("./load", "--full"),
    dir="/srv",
    env={"A": "1"},
    needs=((Need("extract"), Need("probe", Outcome.FAILED)),),
    timeout_s=7200.0,
    retry_codes=(75,),
    finish=Finish.REPORT,
    limits=Limits(memory_bytes=1000),
)
UPSTREAMS = tuple(Job(name=name, dag="nightly", command="true", dir="/") for name in ("extract", "probe"))
DAG = Dag(name="nightly", timezone="Europe/Berlin", jobs=(*UPSTREAMS, JOB))


def make_run(number: int = 1, dag: Dag = DAG, finished_at: float | None = None) -> Run:
    return Run(
        id=number,
        name=f"{dag.name}@{number}",
        dag=dag,
        run_date="2026-11-23",
        trigger=Trigger.COMMAND,
        created_at=5.0,
        finished_at=finished_at,
    )


def make_node(run_id: int = 1, attempt_id: int | None = 1) -> Node:
    return Node(run_id=run_id, job="load", state=State.QUEUED, attempts=1, attempt_id=attempt_id, retry_at=9.5, tries=1)


def save_run(run: Run, attempt_id: int | None = None) -> list[Save]:
    """A whole run: the store takes no other for good."""
    nodes = [Node(run_id=run.id, job=job.name, state=State.STOPPED) for job in run.dag.jobs]
    return [SaveRun(run), *(SaveNode(make_node(run.id, attempt_id) if node.job == "load" else node) for node in nodes)]


def make_attempt(number: int = 1, run_id: int = 1) -> Attempt:
    return Attempt(
        id=number,
        run_id=run_id,
        job="load",
        number=number,
        state=State.FAILED,
        log="x.log",
        started_at=6.0,
        exit_code=7,
        reported=Outcome.FAILED,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobd.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path, "boot")
    yield opened
    opened.close()


def test_everything_is_as_it_was_after_closing_and_opening(store: Store, path: Path) -> None:
    run, attempt = make_run(), make_attempt()
    saves = save_run(run, attempt.id)
    hold = Hold(name="load", by="me", at=4.0, reason="repair")
    entry = JournalEntry(id=1, at=5.0, kind="queued", run=run.name, job="load")
    store.commit([*saves, SaveAttempt(attempt), SaveHold(hold), Journal(entry)])
    store.close()

    found = Store(path, "boot")
    snapshot = found.load()

    assert snapshot.runs == [run]
    nodes = [save.node for save in saves if isinstance(save, SaveNode)]
    assert snapshot.nodes == sorted(nodes, key=lambda node: node.job)
    assert snapshot.attempts == [attempt]
    assert snapshot.holds == [hold]
    assert (snapshot.last_event_id, snapshot.last_run_id, snapshot.last_attempt_id) == (1, 1, 1)
    assert found.events(0) == [entry]
    found.close()


def test_records_are_written_as_they_are_at_the_commit_and_overwrite_earlier_ones(store: Store) -> None:
    saves = save_run(make_run())
    node = saves[1].node  # type: ignore[union-attr]
    store.commit(saves)
    node.state = State.BLOCKED
    store.commit([SaveNode(node), SaveNode(node)])
    assert [each.state for each in store.load().nodes] == [State.BLOCKED, State.QUEUED, State.STOPPED]


def test_only_unfinished_runs_and_the_newest_of_a_dag_are_loaded(store: Store) -> None:
    runs = [make_run(1, finished_at=1.0), make_run(2), make_run(3, finished_at=3.0), make_run(4, finished_at=4.0)]
    store.commit([save for each in runs for save in save_run(each)])
    assert [each.id for each in store.load().runs] == [2, 4]
    assert [each.id for each in store.load_run("nightly@1").runs] == [1]
    assert store.load_run("nightly@9").runs == []
    assert store.has_run("nightly@3")
    assert not store.has_run("nightly@9")


def test_a_run_keeps_its_definitions_and_equal_ones_are_kept_once(store: Store, path: Path) -> None:
    changed = Dag(name="nightly", jobs=())
    same = Dag(name=DAG.name, timezone=DAG.timezone, jobs=DAG.jobs)
    store.commit([*save_run(make_run(1)), *save_run(make_run(2, same)), *save_run(make_run(3, changed))])
    assert [each.dag for each in store.load().runs] == [DAG, DAG, changed]
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT count(*) FROM definition").fetchone() == (2,)


def test_ids_of_deleted_attempts_are_not_given_again(store: Store, path: Path) -> None:
    store.commit([SaveRun(make_run()), SaveAttempt(make_attempt(1)), SaveAttempt(make_attempt(2))])
    store.commit([DeleteAttempt(2)])
    store.close()
    found = Store(path, "boot")
    assert found.load().last_attempt_id == 2
    assert found.attempt("load", None, 2) is None
    found.close()


def test_a_failed_commit_writes_nothing_and_the_next_one_works(store: Store) -> None:
    bad = JournalEntry(id=1, at=1.0, kind=None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.commit([SaveRun(make_run()), Journal(bad)])
    assert store.load().runs == []
    store.commit(save_run(make_run()))
    assert len(store.load().runs) == 1


def test_holds_come_and_go(store: Store) -> None:
    store.commit([SaveHold(Hold(name="load", by="me", at=1.0)), SaveHold(Hold(name="nightly", by="me", at=1.0))])
    store.commit([DeleteHold("load")])
    assert [hold.name for hold in store.load().holds] == ["nightly"]


def test_history_is_newest_first_and_takes_jobs_and_dags(store: Store) -> None:
    store.commit([SaveRun(make_run()), *(SaveAttempt(make_attempt(number)) for number in (1, 2, 3))])
    assert [attempt.id for attempt, _, _ in store.history(("load",), 2)] == [3, 2]
    assert [attempt.id for attempt, _, _ in store.history(("nightly",), 9)] == [3, 2, 1]
    assert store.history(("other",), 9) == []
    assert store.history((), 9, since=7.0) == []
    assert store.attempt("load", "nightly@1", None) == (make_attempt(3), "nightly@1", "nightly")


def test_answers_are_kept_with_the_commit_and_the_oldest_go_first(store: Store) -> None:
    store.commit([], [(f"request {number}", 1.0, b"first") for number in range(MAX_ANSWERS)])
    store.commit([], [("one more", 2.0, b"answer"), ("request 5", 2.0, b"second")])
    assert store.answer("one more") == b"answer"
    assert store.answer("request 5") == b"first"
    assert store.answer("request 0") is None


def test_an_attempt_keeps_the_boot_in_which_it_was_first_committed(path: Path) -> None:
    before = Store(path, "before")
    before.commit([SaveRun(make_run()), SaveAttempt(make_attempt(1))])
    before.close()
    after = Store(path, "after")
    after.commit([SaveAttempt(make_attempt(1)), SaveAttempt(make_attempt(2))])
    assert after.boots([1, 2, 3]) == {1: "before", 2: "after"}
    after.close()


def test_attempts_that_have_ended_or_were_taken_back_are_settled(store: Store) -> None:
    active = make_attempt(2)
    active.state = State.STOPPING
    store.commit([*save_run(make_run()), *map(SaveAttempt, (make_attempt(1), active, make_attempt(3)))])
    store.commit([DeleteAttempt(3)])
    assert store.settled([1, 2, 3, 4]) == [1, 3, 4]
