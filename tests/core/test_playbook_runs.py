"""Runs: names and dates, states, reload, autostart, waiting, leaving, and going on after a restart."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from supervisor.core.events import Configured, Launch, Now, SaveRun
from supervisor.core.model import Dag, Finish, Snapshot
from tests.core.playbook import (
    Playbook,
    Step,
    boots,
    define,
    drops_out,
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
    wait,
    was_not_started,
)

AUTOSTART = [Dag(name="main", autostart=True)]


# ---- names and dates -------------------------------------------------------------------------------


def test_a_run_is_named_by_its_start_in_the_zone_of_its_dag() -> None:
    book = Playbook(job("a"), dags=[Dag(name="main", timezone="Pacific/Auckland")]) >> start() << "launch a"
    assert book.run().run.name == "main@2026-11-24T01:00:00"
    assert book.run().run.run_date == "2026-11-24"
    [launch] = [decision for decision in book.decisions if isinstance(decision, Launch)]
    assert (launch.run, launch.run_date) == ("main@2026-11-24T01:00:00", "2026-11-24")
    assert (launch.timezone, launch.log) == ("Pacific/Auckland", "main/main@2026-11-24T01:00:00/a.1.log")


def test_a_name_that_is_taken_gets_a_number() -> None:
    book = Playbook(job("a"))
    names = []
    for _ in range(3):
        book = (book >> restart()).forget()
        names.append(book.run().run.name.removeprefix("main@2026-11-23T12:00:00"))
    assert names == ["", ".2", ".3"]


def test_the_repeated_hour_of_a_change_of_clocks_gives_two_names() -> None:
    book = Playbook(job("a"), dags=[Dag(name="main", timezone="Europe/Berlin")])
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp()  # 02:30 summer time; an hour later 02:30 again
    book.now = Now(first, 0.0)
    book = book >> start() << "launch a" >> ends("a") << "a success, main success"
    book = book >> later(3600) >> start() << "launch a"
    names = [live_run.run.name for live_run in book.engine.registry]
    assert names == ["main@2026-10-25T02:30:00", "main@2026-10-25T02:30:00.2"]


def test_a_name_of_a_run_that_is_no_longer_in_memory_is_not_used_again() -> None:
    book = Playbook(job("a"))
    for _ in range(2):
        book = book >> start() << "launch a" >> ends("a") << "a success, main success"
        book.engine.forget_finished()
    assert len(list(book.engine.registry)) == 1
    book = book >> start() << "launch a"
    assert book.run().run.name.endswith(".3")


# ---- states ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([], "running"),
        ([ends("a")], "running"),
        ([ends("a"), ends("b")], "success"),
        ([ends("a"), ends("b", 1)], "failed"),
        ([ends("a", 1), ends("b")], "failed"),
        ([ends("a"), is_lost("b")], "failed"),
        ([ends("a"), stop("b")], "running"),
        ([ends("a"), stop("b"), is_gone("b")], "stopped"),
        ([ends("a", 1), stop("b"), is_gone("b")], "failed"),
        ([ends("a"), stop("b"), is_gone("b"), skip("b")], "success"),
    ],
)
def test_a_run_is_running_or_else_the_worst_of_its_jobs(steps: list[Step], state: str) -> None:
    book = Playbook(job("a"), job("b"), job("c", ["a"], enabled=False)) >> start()
    for step in steps:
        book = book.forget() >> step
    assert book.run().state == state
    assert (book.run().run.finished_at is None) is (state == "running")


def test_a_run_keeps_the_time_it_finished_until_it_goes_on() -> None:
    book = Playbook(job("a"), job("b")) >> start() << "launch a, launch b" >> ends("a", 1) << "a failed"
    book = book >> ends("b", 1) << "b failed, main failed"
    finished_at = book.run().run.finished_at
    book = book >> later(60) >> mark("a") << "a success"
    assert book.run().run.finished_at == finished_at
    assert book >> retry("b") << "b queued, launch b 2, main resumed"
    assert book.run().run.finished_at is None


def test_a_run_is_saved_only_when_it_changed() -> None:
    book = Playbook(job("a"), job("b", ["a"]), job("c", ["b"])) >> start() << "launch a" >> ends("a")
    assert book << "a success, launch b"
    assert not any(isinstance(decision, SaveRun) for decision in book.decisions)


# ---- reload ----------------------------------------------------------------------------------------


def test_a_job_added_by_a_reload_is_queued_in_an_unfinished_run() -> None:
    book = Playbook(job("a"), job("c")) >> start() << "launch a, launch c"
    book = book >> reload(job("a"), job("b", ["a"]), job("c", ["b"])) << "b queued"
    assert list(book.states) == ["a", "c", "b"]
    assert book >> ends("a") << "a success, launch b"


def test_a_job_added_by_a_reload_is_stopped_in_a_finished_run() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> ends("a") << "a success, main success"
    book = book >> reload(job("a"), job("b", ["a"]), job("c", enabled=False))
    book = book << "c stopped, c skipped, b stopped, main stopped"
    assert book >> start("b") << "b queued, launch b, main resumed"


def test_a_run_keeps_the_definitions_it_began_with() -> None:
    book = Playbook(job("a"), job("b", ["a"])) >> start() << "launch a"
    book = book >> reload(job("b"), job("a", ["b"], retries=5), job("c", ["a"])) << "c queued"
    assert book >> ends("a", 1) << "a failed, b blocked, c blocked, main failed"
    assert book >> start(date="2026-11-24") << "launch b"
    assert list(book.states) == ["b", "a", "c"]


def test_a_job_removed_by_a_reload_ends_as_it_began() -> None:
    book = Playbook(job("a"), job("b", ["a"])) >> start() << "launch a" >> reload(job("b"))
    assert book >> ends("a") << "a success, launch b" >> ends("b") << "b success, main success"
    assert book >> start() << "launch b"
    assert list(book.states) == ["b"]


def test_a_reload_is_noted_with_who_asked() -> None:
    book = Playbook(job("a")) >> (lambda _: Configured(define([job("a")]), "ann")) << "reloaded"
    assert book.store.journal[-1].by == "ann"


# ---- autostart -------------------------------------------------------------------------------------


def test_autostart_begins_a_run_when_the_daemon_starts_and_none_is_unfinished() -> None:
    book = Playbook(job("a"), dags=AUTOSTART) >> boots() << "launch a"
    assert book.run().run.trigger == "autostart"
    assert book.reborn()
    assert book >> ends("a", 1) << "a failed, main failed"
    assert book.reborn() << "launch a"


def test_autostart_sees_an_older_run_that_is_unfinished() -> None:
    book = Playbook(job("a"), dags=AUTOSTART) >> start() << "launch a"
    old = book.run().run.name
    book = book >> stop() << "stop a" >> restart() >> stop() << "a stopped, main stopped"
    assert book.reborn() << "stop a"
    assert book >> is_gone("a", run=old) << "a stopped, main stopped"


# ---- wait ------------------------------------------------------------------------------------------


def test_wait_is_answered_when_the_run_has_ended() -> None:
    book = Playbook(job("a"), job("b", ["a"])) >> start() << "launch a" >> wait("main") >> ends("a")
    book = book << "a success, launch b" >> ends("b", 1) << "b failed, main failed, answered"
    [run] = book.result["runs"]
    assert (run["state"], book.result["jobs"]) == ("failed", [])


def test_wait_for_a_job_does_not_wait_for_its_run() -> None:
    book = Playbook(job("a"), job("b")) >> start() << "launch a, launch b" >> wait("a") >> ends("a")
    assert book << "a success, answered"
    assert [each["state"] for each in book.result["jobs"]] == ["success"]


def test_wait_goes_on_through_retries_and_restarts() -> None:
    book = Playbook(job("a", retries=1), job("b")) >> start() << "launch a, launch b" >> wait("a")
    book = book >> ends("a", 1) << "a queued, launch a 2" >> restart("a") << "stop a"
    assert book >> is_gone("a") << "a stopped, a queued, launch a 3" >> ends("a") << "a success, answered"


def test_wait_for_a_blocked_job_ends_when_nothing_else_goes_on() -> None:
    book = Playbook(job("a"), job("b", ["a"]), job("c")) >> start() << "launch a, launch c" >> wait("b")
    assert book >> ends("a", 1) << "a failed, b blocked" >> ends("c") << "c success, main failed, answered"


def test_wait_for_what_has_ended_is_answered_at_once() -> None:
    book = Playbook(job("a"), job("x", dag="other")) >> start("a") << "a queued, launch a" >> ends("a")
    book = book << "a success, main success" >> wait("main") << "answered" >> wait("a") << "answered"
    assert book >> wait() << "answered"
    assert [each["run"] for each in book.result["runs"]] == [book.run().run.name]


def test_wait_for_what_never_ran_is_refused() -> None:
    assert Playbook(job("a")) >> wait("a") << "refused" >> wait("main") << "refused" >> wait("b") << "unknown_name"
    assert Playbook(job("a")) >> wait() << "answered"


def test_wait_gives_up_after_its_timeout() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> wait(timeout_s=60.0) >> later(59) >> later(1) << "timeout"
    assert book >> ends("a") << "a success, main success"


def test_a_wait_that_was_answered_does_not_time_out() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> wait(timeout_s=60.0) >> ends("a")
    assert book << "a success, main success, answered" >> later(60)
    assert book.engine.deadline() is None


def test_nobody_is_answered_who_is_gone() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> wait(timeout_s=60.0) >> drops_out() >> later(60)
    assert book >> drops_out() >> ends("a") << "a success, main success"


# ---- leaving ---------------------------------------------------------------------------------------


def test_shutdown_leaves_jobs_running_and_starts_nothing_more() -> None:
    book = Playbook(job("a"), job("b", ["a"])) >> start() << "launch a" >> shutdown() << "leave"
    assert book.result["waits_for"] == ["a"]
    assert book >> ends("a") << "a success, leave"
    assert book.reborn() << "launch b"


def test_shutdown_that_stops_jobs_leaves_when_they_are_gone() -> None:
    jobs = [job("a"), job("b"), job("c", ["a"]), job("d", finish=Finish.REPORT), job("e")]
    book = Playbook(*jobs) >> start() << "launch a, launch b, launch d, launch e" >> ends("d") >> stop("e") << "stop e"
    book = book >> shutdown(stop_jobs=True) << "stop a, stop b, d stopped"
    assert book.changed == ["a running->stopping", "b running->stopping", "d running->stopped"]
    assert book.result["waits_for"] == ["a", "b", "e"]
    assert book >> is_gone("a") << "a stopped, c blocked" >> ends("b") << "b success"
    assert book >> is_gone("e") << "e stopped, main failed, leave"


def test_drain_lets_jobs_end_and_starts_nothing_more() -> None:
    jobs = [job("a"), job("b"), job("c", ["a"]), job("d", retries=1)]
    book = Playbook(*jobs) >> start() << "launch a, launch b, launch d"
    book = book >> shutdown(drain=True) >> ends("a") << "a success" >> ends("d", 1) << "d queued"
    assert book >> ends("b") << "b success, leave"
    assert book.reborn() << "launch c, launch d 2"


def test_drain_does_not_wait_for_a_report() -> None:
    book = Playbook(job("a", finish=Finish.REPORT)) >> start() << "launch a" >> shutdown(drain=True)
    assert book >> ends("a") << "leave"
    assert book.reborn() >> report("success", "a") << "a success, main success"


def test_a_plain_shutdown_ends_a_drain() -> None:
    assert Playbook(job("a")) >> start() << "launch a" >> shutdown(drain=True) >> shutdown() << "leave"


def test_shutdown_with_nothing_to_do_leaves_at_once() -> None:
    for options in ({}, {"stop_jobs": True}, {"drain": True}):
        assert Playbook(job("a")) >> shutdown(**options) << "leave"


# ---- going on after a restart ------------------------------------------------------------------------


def test_after_a_restart_waiting_jobs_start_and_running_ones_are_looked_for() -> None:
    book = Playbook(job("a"), job("b", ["a"]), job("c"), max_running=1) >> start() << "launch a"
    book = book.reborn()
    assert list(book.engine.under_way()) == [1]
    assert book.engine.under_way()[1].job.name == "a"
    assert book >> ends("a") << "a success, launch c" >> ends("c") << "c success, launch b"


def test_after_a_restart_what_never_started_starts_again_without_a_warning() -> None:
    book = Playbook(job("a")) >> start() << "launch a"
    book = book.reborn() >> was_not_started("a") << "a queued, launch a"
    assert list(book.store.attempts) == [2]


def test_after_a_restart_a_retry_delay_goes_on() -> None:
    book = Playbook(job("a", retries=1, retry_delay_s=60.0)) >> start() << "launch a" >> ends("a", 1) << "a queued"
    assert book.reborn(asleep_s=20) >> later(39) >> later(1) << "launch a 2"
    book = Playbook(job("a", retries=1, retry_delay_s=60.0)) >> start() << "launch a" >> ends("a", 1) << "a queued"
    assert book.reborn(asleep_s=100) << "launch a 2"


def test_after_a_restart_a_clock_that_was_set_back_does_not_make_a_retry_wait_for_years() -> None:
    book = Playbook(job("a", retries=1, retry_delay_s=60.0)) >> start() << "launch a" >> ends("a", 1) << "a queued"
    assert book.reborn(asleep_s=-1e8) >> later(60) << "launch a 2"


def test_a_wall_clock_that_is_set_changes_no_delay() -> None:
    book = Playbook(job("a", retries=1, retry_delay_s=60.0)) >> start() << "launch a" >> ends("a", 1) << "a queued"
    book.now = Now(book.now.wall + 1e6, book.now.mono)
    assert book >> hold("main") << "main held" >> release("main") << "main released"
    assert book.live("a").state == "queued"
    assert book.live("a").node.attempts == 1


def test_after_a_restart_what_was_being_stopped_is_told_again() -> None:
    book = Playbook(job("a"), job("b"), job("c", finish=Finish.REPORT)) >> start() << "launch a, launch b, launch c"
    book = book >> stop("a") << "stop a" >> restart("b") << "stop b" >> report("success", "c") << "wind_down c"
    book = book.reborn() << "stop a, stop b, wind_down c"
    assert book >> is_gone("a") << "a stopped" >> is_gone("b") << "b stopped, b queued, launch b 2"


def test_after_a_restart_a_missing_report_is_still_waited_for() -> None:
    book = Playbook(job("a", finish=Finish.REPORT, timeout_s=60.0)) >> start() << "launch a"
    book = book >> ends("a", duration_s=5.0)
    book = book.reborn(asleep_s=25)
    assert book.engine.under_way() == {}
    assert book >> later(29) >> later(1) << "a failed, main failed"


def test_after_a_restart_slots_are_taken_before_anyone_starts() -> None:
    pool: dict[str, Any] = {"pool": "db"}
    book = Playbook(job("z", **pool), job("a", **pool), pools={"db": 1}) >> start() << "launch z"
    assert book.reborn() >> ends("z") << "z success, launch a"


def test_after_a_restart_a_new_run_still_waits_for_the_old_one() -> None:
    book = Playbook(job("a")) >> start() << "launch a"
    old = book.run().run.name
    book = book >> restart() << "stop a"
    assert book.reborn() << "stop a" >> is_gone("a", run=old) << "a stopped, launch a, main stopped"


def test_a_run_that_was_forgotten_while_it_waited_for_an_older_one_starts_when_it_is_asked_for_again() -> None:
    book = Playbook(job("a")) >> start() << "launch a"
    oldest = book.run().run.name
    book = book >> restart() << "stop a"
    waiting = book.run()
    book = book >> stop() << "a stopped, main stopped" >> restart()
    book.engine.forget_finished()
    book = book >> is_gone("a", run=oldest) << "a stopped, launch a, main stopped"
    run = book.store.runs[waiting.run.id]
    book.engine.restore(Snapshot(runs=[replace(run)], nodes=[replace(waiting.nodes["a"].node)]), book.now)
    assert run.after is not None
    assert book >> start("a", run=run.name) << "a queued, launch a, main resumed"


def test_a_restart_with_a_new_configuration_is_a_reload() -> None:
    book = Playbook(job("a"), job("b", ["a"])) >> start() << "launch a"
    assert book.reborn(jobs=[job("a"), job("c", ["a"])]) << "c queued" >> ends("a") << "a success, launch b, launch c"


def test_ids_are_never_given_twice() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> was_not_started("a") << "a queued, start_refused"
    book = book.reborn() << "launch a"
    assert book.attempt_id("a") == 2
