"""start, stop, retry, restart, skip and mark: each rule of the interface, for a dag and for a job."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from supervisor.core.model import Finish
from tests.core.playbook import (
    Playbook,
    Step,
    ends,
    hold,
    is_gone,
    is_lost,
    job,
    later,
    mark,
    release,
    reload,
    report,
    restart,
    retry,
    shutdown,
    skip,
    start,
    stop,
)


def chain_with_a_failure() -> Playbook:
    """a succeeded, b failed, c is blocked, d was skipped, e was stopped."""
    jobs = [job("a"), job("b", ["a"]), job("c", ["b"]), job("d", ["a:failed"]), job("e", ["a"])]
    book = Playbook(*jobs) >> start() << "launch a" >> ends("a") << "a success, d skipped, launch b, launch e"
    book = book >> stop("e") << "stop e" >> is_gone("e") << "e stopped"
    return book >> ends("b", 1) << "b failed, c blocked, main failed"


# ---- start a dag -----------------------------------------------------------------------------------


def test_start_of_a_dag_without_a_run_makes_one() -> None:
    book = Playbook(job("a"), job("b", ["a"])) >> start("main") << "launch a"
    assert book.result["run"] == "main@2026-11-23T12:00:00"
    assert book.changed == ["a stopped->queued", "b stopped->queued"]


def test_start_of_a_dag_goes_on_from_where_it_stands() -> None:
    book = chain_with_a_failure() >> start("main")
    assert book << "b queued, e queued, c queued, launch b 2, launch e 2, main resumed"
    assert book.changed == ["b failed->queued", "e stopped->queued"]
    assert book.ignored == {"a": "is success", "c": "is blocked already", "d": "is skipped"}


def test_start_of_a_dag_that_succeeded_makes_a_new_run() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> ends("a") << "a success, main success"
    assert book >> later(5) >> start() << "launch a"
    assert book.result["run"] == "main@2026-11-23T12:00:05"


def test_start_of_a_running_dag_changes_nothing() -> None:
    book = Playbook(job("a"), job("b", ["a"])) >> start() << "launch a" >> start()
    assert book.changed == []
    assert book.ignored == {"a": "is running already", "b": "is queued already"}


def test_start_of_a_lost_job_in_a_dag_queues_it() -> None:
    assert (
        Playbook(job("a"))
        >> start() << "launch a"
        >> is_lost("a") << "a lost, main failed"
        >> start() << "a queued, launch a 2, main resumed"
    )  # fmt: skip


def test_start_without_a_name_means_every_dag() -> None:
    book = Playbook(job("a"), job("x", dag="other")) >> start() << "launch a, launch x"
    assert book.result["run"] is None
    assert len(book.result["changed"]) == 2


def test_start_with_a_date_makes_a_run_of_that_date() -> None:
    book = Playbook(job("a")) >> start(date="2026-11-20") << "launch a"
    assert book.result["run"] == "main@2026-11-20T12:00:00"
    assert book.run().run.run_date == "2026-11-20"
    assert book >> start(date="2026-11-21") << "refused"
    assert book >> ends("a", 1) << "a failed, main failed" >> start(date="2026-11-21") << "launch a"


@pytest.mark.parametrize("day", ["tomorrow", "2026-13-01", "20261123", ""])
def test_start_with_a_date_that_is_none_is_refused(day: str) -> None:
    assert Playbook(job("a")) >> start(date=day) << "wrong_params"


def test_start_takes_a_date_or_a_run_but_not_both() -> None:
    book = Playbook(job("a")) >> start() << "launch a"
    assert book >> start(date="2026-11-20", run=book.run().run.name) << "wrong_params"


def test_start_of_an_older_run_goes_on_there() -> None:
    book = chain_with_a_failure()
    old = book.run().run.name
    book = book >> later(1) >> start(date="2026-11-24") << "launch a" >> start("b", run=old)
    assert book << "b queued, c queued, launch b 2, main resumed"
    assert book.live("b", old).state == "running"


# ---- start a job -----------------------------------------------------------------------------------


def test_start_of_a_job_without_a_run_makes_one_in_which_all_others_are_stopped() -> None:
    book = Playbook(job("a"), job("b", ["a"]), job("c")) >> start("a") << "a queued, launch a"
    assert book.states == {"a": "running", "b": "stopped", "c": "stopped"}
    assert book.changed == ["a stopped->queued"]
    assert book >> ends("a") << "a success, main stopped"


def test_start_of_a_job_whose_upstream_is_stopped_is_blocked_by_it() -> None:
    assert Playbook(job("a"), job("b", ["a"])) >> start("b") << "b queued, b blocked, main failed"


def test_start_of_a_failed_job_queues_it_alone() -> None:
    book = chain_with_a_failure() >> start("b") << "b queued, c queued, launch b 2, main resumed"
    assert book.changed == ["b failed->queued"]
    assert book.states["e"] == "stopped"


def test_start_of_a_job_that_succeeded_is_refused_and_names_restart() -> None:
    book = chain_with_a_failure() >> start("a") << "refused"
    assert book.refusal is not None
    assert (book.refusal.code, book.refusal.hint) == (1, "jobctl restart a")


def test_start_of_a_job_that_is_being_stopped_queues_it_when_it_has_stopped() -> None:
    assert (
        Playbook(job("a"))
        >> start() << "launch a"
        >> stop("a") << "stop a"
        >> start("a")
        >> start("a")
        >> is_gone("a") << "a stopped, a queued, launch a 2"
    )  # fmt: skip


def test_start_of_several_jobs_does_what_can_be_done() -> None:
    book = chain_with_a_failure() >> start("a", "b") << "b queued, c queued, launch b 2, main resumed"
    assert list(book.ignored) == ["a"]


def test_start_of_a_job_that_the_configuration_lost_needs_its_run() -> None:
    book = chain_with_a_failure() >> reload(job("a"))
    assert book >> start("b") << "b queued, c queued, launch b 2, main resumed"
    assert book >> stop() << "stop b, c stopped"
    assert book >> is_gone("b") << "b stopped, main stopped" >> start("b", date="2026-11-25") << "refused"
    assert book.refusal is not None
    assert "no longer in the configuration" in book.refusal.message


# ---- stop ------------------------------------------------------------------------------------------


def test_stop_of_a_dag_stops_what_runs_and_what_waits_and_keeps_the_rest() -> None:
    book = Playbook(*map(job, "abc"), job("d", ["a"]), max_running=2) >> start() << "launch a, launch b"
    book = book >> ends("a") << "a success, launch c" >> stop("main") << "stop b, stop c, d stopped"
    assert book.changed == ["b running->stopping", "c running->stopping", "d queued->stopped"]
    assert book >> is_gone("b") << "b stopped" >> is_gone("c") << "c stopped, main stopped"


def test_stop_of_a_blocked_job() -> None:
    book = chain_with_a_failure() >> stop("c") << "c stopped"
    assert book.live("c").node.reason == "stopped by ann"


def test_stop_now_kills_even_what_is_stopping() -> None:
    book = Playbook(job("a"), job("b")) >> start() << "launch a, launch b"
    assert book >> stop("a") << "stop a" >> stop("a")
    assert book.ignored == {"a": "is stopping already"}
    assert book >> stop(now=True) << "kill a, kill b"


def test_stop_of_what_ended_or_never_ran_changes_nothing() -> None:
    book = Playbook(job("a")) >> stop("a")
    assert book.ignored == {"a": "has not run yet"}
    book = book >> start() << "launch a" >> ends("a") << "a success, main success" >> stop("a")
    assert book.ignored == {"a": "is success"}


def test_stop_during_a_retry_delay_ends_it() -> None:
    assert (
        Playbook(job("a", retries=1, retry_delay_s=60.0))
        >> start() << "launch a"
        >> ends("a", 1) << "a queued"
        >> stop("a") << "a stopped, main stopped"
        >> later(60)
    )  # fmt: skip


def test_stop_without_a_name_reaches_a_run_whose_dag_is_no_longer_configured() -> None:
    book = Playbook(job("a"), job("x", dag="other")) >> start() << "launch a, launch x" >> reload(job("a"))
    assert book >> stop() << "stop a, stop x"


def test_the_outcome_counts_if_it_came_before_the_stop_did() -> None:
    assert Playbook(job("a")) >> start() << "launch a" >> stop() << "stop a" >> ends("a") << "a success, main success"


# ---- retry -----------------------------------------------------------------------------------------


def test_retry_of_a_dag_queues_failed_and_lost_jobs_only() -> None:
    book = chain_with_a_failure() >> retry("main") << "b queued, c queued, launch b 2, main resumed"
    assert book.changed == ["b failed->queued"]


def test_retry_of_a_lost_job() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> is_lost("a") << "a lost, main failed"
    assert book >> retry("a") << "a queued, launch a 2, main resumed"


def test_retry_with_downstream_queues_all_after_it_whatever_their_state() -> None:
    jobs = [job("a"), job("b", ["a:done"]), job("c", ["b"]), job("d", ["a:done"]), job("e", ["a"]), job("x")]
    book = Playbook(*jobs) >> start() << "launch a, launch x"
    book = book >> ends("a", 1) << "a failed, e blocked, launch b, launch d"
    book = book >> ends("b") << "b success, launch c" >> ends("c") << "c success"
    book = book >> retry("a", downstream=True)
    assert book << "a queued, b queued, stop d, c queued, e queued, launch a 2"
    assert book.changed == ["a failed->queued", "b success->queued", "d running->stopping", "c success->queued"]
    assert book >> is_gone("d") << "d stopped, d queued"
    assert book >> ends("a") << "a success, launch b 2, launch d 2, launch e"


@pytest.mark.parametrize("name", ["a", "c", "d", "e"])
def test_retry_of_a_job_that_has_not_failed_is_refused(name: str) -> None:
    book = chain_with_a_failure() >> retry(name) << "refused"
    assert book.refusal is not None
    assert book.refusal.hint == f"jobctl restart {name}"


def test_retry_without_a_run_is_refused_for_a_job() -> None:
    assert Playbook(job("a")) >> retry("a") << "refused"
    book = Playbook(job("a")) >> retry("main")
    assert book.result["changed"] == []


def test_retry_gives_back_all_retries_and_the_numbers_go_on() -> None:
    book = Playbook(job("a", retries=1)) >> start() << "launch a" >> ends("a", 1) << "a queued, launch a 2"
    book = book >> ends("a", 1) << "a failed, main failed" >> retry() << "a queued, launch a 3, main resumed"
    assert book.live("a").node.tries == 0


# ---- restart ---------------------------------------------------------------------------------------


def test_restart_of_a_dag_makes_a_new_run_that_begins_when_the_old_one_is_gone() -> None:
    book = Playbook(job("a"), job("b"), job("c", ["a"])) >> start() << "launch a, launch b"
    old = book.run().run.name
    book = book >> restart("main") << "stop a, stop b, c stopped"
    assert book.result["run"] == f"{old}.2"
    assert [live_run.run.after for live_run in book.engine.registry] == [None, 1]
    assert book >> is_gone("a", run=old) << "a stopped"
    assert book >> is_gone("b", run=old) << "b stopped, launch a, launch b, main stopped"
    assert book.run().run.name == f"{old}.2"


def test_restart_twice_still_waits_for_the_attempts_of_the_first_run() -> None:
    book = Playbook(job("a")) >> start() << "launch a"
    old = book.run().run.name
    assert book >> restart() << "stop a" >> restart() << "a stopped, main stopped" >> later(1000)
    assert book >> is_gone("a", run=old) << "a stopped, launch a, main stopped"
    assert book.run().run.name.endswith(".3")


def test_restart_of_a_finished_dag_begins_at_once() -> None:
    book = chain_with_a_failure()
    old = book.run().run.name
    assert book >> restart() << "c stopped, launch a"
    assert {name: str(live.state) for name, live in book.run(old).nodes.items()}["b"] == "failed"


def test_restart_of_a_dag_without_a_run_begins_one() -> None:
    assert Playbook(job("a")) >> restart() << "launch a"


def test_restart_of_a_job_runs_it_once_more_in_the_same_run() -> None:
    book = Playbook(job("a"), job("b", ["a"])) >> start() << "launch a" >> ends("a") << "a success, launch b"
    book = book >> ends("b") << "b success, main success"
    assert book >> restart("a") << "a queued, launch a 2, main resumed" >> ends("a") << "a success, main success"


def test_restart_of_a_running_job_stops_it_first() -> None:
    book = Playbook(job("a", retries=3)) >> start() << "launch a" >> restart("a") << "stop a" >> restart("a")
    assert book.ignored == {"a": "is stopping already"}
    assert book >> ends("a", 1) << "a failed, a queued, launch a 2"


def test_stop_takes_back_a_restart() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> restart("a") << "stop a" >> stop("a")
    assert book.changed == ["a stopping->stopping"]
    assert book >> is_gone("a") << "a stopped, main stopped"


def test_restart_of_a_job_that_waits_for_a_report() -> None:
    book = Playbook(job("a", finish=Finish.REPORT)) >> start() << "launch a" >> ends("a") >> restart("a")
    assert book << "a stopped, a queued, launch a 2"
    assert book.changed == ["a running->queued"]


def test_restart_of_a_job_that_never_ran_makes_a_run_for_it() -> None:
    book = Playbook(job("a"), job("b")) >> restart("b") << "b queued, launch b"
    assert book.states == {"a": "stopped", "b": "running"}


# ---- skip and mark ---------------------------------------------------------------------------------


def test_mark_success_lets_go_on() -> None:
    book = chain_with_a_failure() >> mark("b") << "b success, c queued, launch c, main resumed"
    assert book.live("b").node.reason == "marked success by ann"
    entry = next(entry for entry in book.store.journal if entry.kind == "success" and entry.job == "b")
    assert entry.by == "ann"


def test_mark_failed_blocks() -> None:
    book = Playbook(job("a"), job("b", ["a"])) >> hold("b") << "b held" >> start() << "launch a"
    book = book >> ends("a") << "a success" >> mark("a", outcome="failed") << "a failed, b blocked, main failed"
    assert book >> mark("a") << "a success, b queued, main resumed"


def test_what_waits_can_be_skipped_or_marked() -> None:
    jobs = [job("a"), job("b"), job("c", ["b"])]
    book = Playbook(*jobs, max_running=1) >> start() << "launch a" >> skip("b") << "b skipped"
    assert book >> mark("c", outcome="failed") << "c failed" >> ends("a") << "a success, main failed"


@pytest.mark.parametrize(
    ("step", "words", "hint"),
    [
        (skip("a"), "a is running", "jobctl stop a first"),
        (mark("a"), "a is running", "jobctl stop a first"),
        (skip("b"), "b is success", "jobctl restart b runs it once more"),
    ],
)
def test_skip_and_mark_are_refused_where_they_make_no_sense(step: Step, words: str, hint: str) -> None:
    book = Playbook(job("a"), job("b")) >> start() << "launch a, launch b" >> ends("b") << "b success"
    book = book >> step << "refused"
    assert book.refusal is not None
    assert (book.refusal.message, book.refusal.hint) == (words, hint)


def test_skip_and_mark_of_what_is_so_already_change_nothing() -> None:
    book = chain_with_a_failure() >> mark("a") >> mark("b", outcome="failed")
    assert book.ignored == {"b": "is failed already"}


@pytest.mark.parametrize("step", [skip(), mark(), mark("a", outcome="lost")])
def test_skip_and_mark_need_names_and_an_outcome(step: Step) -> None:
    assert Playbook(job("a")) >> start() << "launch a" >> step << "wrong_params"


def test_skip_without_a_run_is_refused() -> None:
    assert Playbook(job("a")) >> skip("a") << "refused"


# ---- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [start, stop, retry, restart, skip, mark])
def test_an_unknown_name_is_refused_with_the_nearest_one(command: Any) -> None:
    book = Playbook(job("extract"), job("load", ["extract"])) >> command("extrct") << "unknown_name"
    assert book.refusal is not None
    assert (book.refusal.code, book.refusal.hint) == (4, "did you mean extract?")
    assert "'extrct'" in book.refusal.message


def test_one_unknown_name_spoils_the_whole_command() -> None:
    book = Playbook(job("a"), job("b")) >> start("a", "zzz") << "unknown_name"
    assert book.engine.registry.newest("main") is None


def test_an_unknown_run_is_refused() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> stop(run="main@2020-01-01T00:00") << "unknown_name"
    assert book >> stop("x", run=book.run().run.name) << "unknown_name"


def test_a_refusal_is_noted_with_who_asked() -> None:
    book = Playbook(job("a")) >> start("b", force=True) << "unknown_name"
    entry = book.store.journal[-1]
    assert (entry.kind, entry.text, entry.by) == ("refused", "start b --force: no job or dag 'b'", "ann")


# ---- dry run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        (start(dry_run=True), ["b failed->queued", "e stopped->queued"]),
        (start("b", force=True, dry_run=True), ["b failed->queued"]),
        (start(date="2026-11-30", dry_run=True), [f"{name} stopped->queued" for name in "abcde"]),
        (stop(dry_run=True), ["c blocked->stopped"]),
        (retry(downstream=True, dry_run=True), ["b failed->queued"]),
        (restart(dry_run=True), ["c blocked->stopped", *(f"{name} stopped->queued" for name in "abcde")]),
        (restart("a", dry_run=True), ["a success->queued"]),
        (skip("b", dry_run=True), ["b failed->skipped"]),
        (mark("b", dry_run=True), ["b failed->success"]),
        (hold("b", dry_run=True), ["b released->held"]),
        (report("data", "b", data=5, dry_run=True), []),
        (shutdown(dry_run=True), []),
        (shutdown(stop_jobs=True, dry_run=True), []),
    ],
)
def test_a_dry_run_shows_the_change_and_changes_nothing_at_all(step: Step, answer: list[str]) -> None:
    book = chain_with_a_failure()
    before = deepcopy(vars(book.store))
    book = book >> step
    assert book.changed == answer
    assert len(book.decisions) == 1
    assert vars(book.store) == before
    assert not book.engine.leaving
    assert book >> later(1000)


def test_a_dry_run_of_what_is_refused_leaves_no_trace() -> None:
    book = chain_with_a_failure() >> start("a", dry_run=True) << "refused"
    assert len(book.decisions) == 1


def test_a_dry_run_of_release_says_what_would_start() -> None:
    book = Playbook(job("a")) >> hold("a", "main") << "a held, main held" >> start() >> release("a", dry_run=True)
    assert book.result["starts"] == []
    assert book >> release("a", "main", dry_run=True)
    assert book.result["starts"] == ["a"]
    assert set(book.engine.holds) == {"a", "main"}
