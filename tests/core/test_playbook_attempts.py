"""Attempts: what an ending means, automatic retries, reports, and starts that the machine refused."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.core.events import NotStarted, SaveAttempt
from supervisor.core.model import Finish
from supervisor.core.transitions import MAX_RETRY_DELAY_S, retry_delay_s
from tests.core.playbook import (
    Playbook,
    Step,
    begins,
    cannot_start,
    ends,
    is_gone,
    is_killed,
    is_lost,
    job,
    later,
    report,
    retry,
    start,
    stop,
    times_out,
    was_not_started,
)


@pytest.mark.parametrize(
    ("step", "state", "reason"),
    [
        (ends("a"), "success", ""),
        (ends("a", 5), "success", "exit code 5"),
        (ends("a", 3), "skipped", "skip code 3"),
        (ends("a", 7), "failed", "exit code 7"),
        (is_killed("a", 11), "failed", "killed by signal 11 (SIGSEGV)"),
        (is_killed("a", 64), "failed", "killed by signal 64"),
        (times_out("a"), "failed", "timed out after 1h30m"),
        (cannot_start("a"), "failed", "could not start: no such command"),
        (is_lost("a"), "lost", "its shim was killed"),
        (is_gone("a"), "stopped", "stopped"),
    ],
)
def test_every_ending_has_its_state_and_reason(step: Step, state: str, reason: str) -> None:
    a = job("a", success_codes=(0, 5), skip_codes=(3,), timeout_s=5400.0)
    book = Playbook(a) >> start() << "launch a" >> step
    assert book << f"a {state}, main {'success' if state == 'skipped' else 'failed' if state == 'lost' else state}"
    attempt = book.live("a").attempt
    assert attempt is not None
    assert attempt.state == state
    assert attempt.reason.startswith(reason)


def test_the_figures_of_an_ending_are_recorded() -> None:
    figures: dict[str, Any] = {"duration_s": 2.5, "cpu_s": 0.5, "max_rss_bytes": 4096, "log_dropped_bytes": 7}
    book = Playbook(job("a")) >> start() << "launch a" >> begins("a") >> ends("a", **figures) << "a success"
    attempt = book.forget().live("a").attempt
    assert attempt is not None
    assert {name: getattr(attempt, name) for name in figures} == figures


def test_an_end_is_told_once_however_often_it_is_heard_of() -> None:
    book = Playbook(job("a"), job("b", ["a"])) >> start() << "launch a"
    again = book.attempt_id("a")
    twice = ends("a", 1)(book)
    book = book >> ends("a") << "a success, launch b" >> (lambda _: twice) >> (lambda _: NotStarted(again, "late"))
    assert book.store.attempts[again].state == "success"
    assert book >> (lambda _: NotStarted(99, "of nobody"))


# ---- automatic retries -----------------------------------------------------------------------------


def test_retries_are_used_up_and_then_it_has_failed() -> None:
    assert (
        Playbook(job("a", retries=2), job("b", ["a"]))
        >> start() << "launch a"
        >> ends("a", 1) << "a queued, launch a 2"
        >> ends("a", 1) << "a queued, launch a 3"
        >> ends("a", 1) << "a failed, b blocked, main failed"
        >> retry("a") << "a queued, b queued, launch a 4, main resumed"
        >> ends("a", 1) << "a queued, launch a 5"
        >> ends("a") << "a success, launch b"
    )  # fmt: skip


def test_a_retry_waits_for_its_delay_which_grows_to_its_maximum() -> None:
    assert (
        Playbook(job("a", retries=3, retry_delay_s=30.0, retry_backoff=2.0, retry_max_delay_s=50.0))
        >> start() << "launch a"
        >> ends("a", 1) << "a queued"
        >> later(29.9)
        >> later(0.1) << "launch a 2"
        >> ends("a", 1) << "a queued"
        >> later(49.9)
        >> later(0.1) << "launch a 3"
        >> ends("a", 1) << "a queued"
        >> later(50) << "launch a 4"
        >> ends("a", 1) << "a failed, main failed"
    )  # fmt: skip


def test_delays_cannot_overflow() -> None:
    grows = job("a", retries=1000, retry_delay_s=1.0, retry_backoff=1e6)
    assert retry_delay_s(grows, 999) == MAX_RETRY_DELAY_S
    assert retry_delay_s(job("a", retry_backoff=1e6), 999) == 0
    assert retry_delay_s(job("a", retry_delay_s=8.0, retry_backoff=0.5), 3) == 1


@pytest.mark.parametrize(
    ("step", "is_retried"),
    [
        (ends("a", 75), True),
        (ends("a", 1), False),
        (is_killed("a", 9), False),
        (times_out("a"), False),
        (cannot_start("a"), False),
        (is_lost("a"), False),
    ],
)
def test_retry_codes_name_the_only_failures_that_are_tried_again(step: Step, is_retried: bool) -> None:
    book = (Playbook(job("a", retries=1, retry_codes=(75,))) >> start() << "launch a" >> step).forget()
    assert book.live("a").node.attempts == (2 if is_retried else 1)


@pytest.mark.parametrize("step", [is_killed("a", 9), times_out("a"), cannot_start("a"), ends("a", 1)])
def test_without_retry_codes_every_failure_is_tried_again(step: Step) -> None:
    assert Playbook(job("a", retries=1)) >> start() << "launch a" >> step << "a queued, launch a 2"


def test_what_was_stopped_is_not_tried_again() -> None:
    assert (
        Playbook(job("a", retries=1, retry_lost=True))
        >> start() << "launch a"
        >> stop("a") << "stop a"
        >> ends("a", 1) << "a failed, main failed"
        >> start("a") << "a queued, launch a 2, main resumed"
        >> stop("a") << "stop a"
        >> is_lost("a") << "a lost, main failed"
    )  # fmt: skip


def test_lost_is_not_guessed_and_not_tried_again_unasked() -> None:
    assert Playbook(job("a", retries=3)) >> start() << "launch a" >> is_lost("a") << "a lost, main failed"


def test_retry_lost_starts_again_by_itself_and_takes_no_retry() -> None:
    book = (
        Playbook(job("a", retries=1, retry_lost=True, retry_delay_s=10.0), job("b", ["a"]))
        >> start() << "launch a"
        >> is_lost("a") << "a lost, a queued"
        >> later(10) << "launch a 2"
        >> ends("a", 1) << "a queued"
        >> later(10) << "launch a 3"
        >> is_lost("a") << "a lost, a queued"
        >> later(10) << "launch a 4"
        >> ends("a", 1) << "a failed, b blocked, main failed"
    )  # fmt: skip
    assert [str(attempt.state) for attempt in book.store.attempts.values()] == ["lost", "failed", "lost", "failed"]


def test_a_lost_job_is_not_started_again_at_once() -> None:
    assert (
        Playbook(job("a", retry_lost=True))
        >> start() << "launch a"
        >> is_lost("a") << "a lost, a queued"
        >> later(1) << "launch a 2"
    )  # fmt: skip


# ---- reports ---------------------------------------------------------------------------------------


def test_a_report_counts_more_than_the_exit_code() -> None:
    assert (
        Playbook(job("a"), job("b"))
        >> start() << "launch a, launch b"
        >> report("success", "a") >> ends("a", 1) << "a success"
        >> report("failed", "b", message="no rows") >> ends("b") << "b failed, main failed"
    )  # fmt: skip


def test_the_text_of_a_report_is_the_reason() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> report("failed", "a", message="no rows") >> ends("a")
    assert book.forget().live("a").node.reason == "reported failed: no rows"


def test_data_may_be_reported_with_an_outcome_alone_and_afterwards() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> report("data", "a", data=10) >> ends("a")
    assert book << "a success, main success" >> report("data", "a", data=12, attempt=1)
    assert book.store.attempts[1].data == 12
    assert book.result == {"run": book.run().run.name, "changed": [], "ignored": []}


@pytest.mark.parametrize(
    ("step", "kind", "words"),
    [
        (report("success", "b"), "refused", "no attempt"),
        (report("data", "a"), "wrong_params", "needs an amount"),
        (report("data", "a", data=-1), "wrong_params", "cannot be -1"),
        (report("maybe", "a"), "wrong_params", "maybe"),
        (report("failed", "a", attempt=2), "refused", "attempt 2 of a is over; the newest is 1"),
        (report("failed", "aa"), "unknown_name", "aa"),
        (report("failed", "main"), "refused", "no attempt"),
    ],
)
def test_a_report_that_makes_no_sense_is_refused(step: Step, kind: str, words: str) -> None:
    book = Playbook(job("a"), job("b", ["a"])) >> start() << "launch a" >> step << kind
    assert book.refusal is not None
    assert words in book.refusal.message


def test_an_outcome_that_is_known_cannot_be_reported() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> ends("a") << "a success, main success"
    assert book >> report("failed", "a") << "refused"
    assert book.refusal is not None
    assert book.refusal.hint == "jobctl mark a failed"


def waits_for_word(**keys: Any) -> Playbook:
    return Playbook(job("a", finish=Finish.REPORT, **keys), job("b", ["a"])) >> start() << "launch a"


def test_finish_report_ends_when_someone_reports_after_the_processes_ended() -> None:
    book = waits_for_word() >> ends("a") >> later(10_000)
    assert book.states["a"] == "running"
    assert book.engine.under_way() == {}
    assert book >> report("success", "a") << "a success, launch b"
    assert book.result["changed"] == [{"job": "a", "from": "running", "to": "success", "run": book.run().run.name}]


def test_finish_report_winds_down_what_still_runs() -> None:
    assert (
        waits_for_word()
        >> report("success", "a") << "wind_down a"
        >> report("success", "a", message="once more")
        >> is_gone("a") << "a success, launch b"
    )  # fmt: skip


def test_finish_report_fails_at_once_when_its_processes_end_badly() -> None:
    assert waits_for_word() >> ends("a", 1) << "a failed, b blocked, main failed"


def test_finish_report_without_a_word_fails_when_its_time_is_up() -> None:
    book = waits_for_word(timeout_s=60.0, retries=1) >> ends("a", duration_s=20.0) >> later(39.9)
    assert book >> later(0.1) << "a queued, launch a 2"
    assert book.store.attempts[1].reason == "no report within 1m"


def test_finish_report_can_be_stopped_while_its_word_is_missing() -> None:
    assert waits_for_word() >> ends("a") >> stop("a") << "a stopped, b blocked, main failed"


def test_finish_report_that_is_being_stopped_has_no_outcome_without_a_word() -> None:
    assert waits_for_word() >> stop("a") << "stop a" >> ends("a") << "a stopped, b blocked, main failed"


def test_a_report_does_not_take_back_a_stop() -> None:
    assert waits_for_word() >> stop("a") << "stop a" >> report("success", "a") >> is_gone("a") << "a success, launch b"


# ---- starts that the machine refused -----------------------------------------------------------------


def test_what_was_not_started_goes_back_and_has_taken_no_attempt() -> None:
    book = Playbook(job("a", retries=1)) >> start() << "launch a" >> was_not_started("a") << "a queued, start_refused"
    assert book.store.attempts == {}
    assert book.live("a").node.attempts == 0
    assert book >> later(0.09) >> later(0.01) << "launch a"
    assert (book.live("a").node.attempts, book.live("a").node.tries) == (1, 0)


def test_refused_starts_wait_longer_and_longer_and_warn_once() -> None:
    assert (
        Playbook(job("a"), job("b"))
        >> start() << "launch a, launch b"
        >> was_not_started("a") << "a queued, start_refused"
        >> was_not_started("b") << "b queued"
        >> later(0.1) << "launch a, launch b"
        >> was_not_started("a") << "a queued"
        >> later(0.1)
        >> later(0.1) << "launch a"
        >> begins("a")
        >> was_not_started("b") << "b queued, launch b"
        >> was_not_started("b") << "b queued, start_refused"
        >> later(0.1) << "launch b"
    )  # fmt: skip


def test_a_stop_meets_what_was_not_started() -> None:
    assert (
        Playbook(job("a"))
        >> start() << "launch a"
        >> stop("a") << "stop a"
        >> was_not_started("a") << "a stopped, start_refused, main stopped"
    )  # fmt: skip


def test_only_the_end_of_an_attempt_is_saved_with_its_figures() -> None:
    book = Playbook(job("a")) >> start() << "launch a" >> begins("a")
    assert not any(isinstance(decision, SaveAttempt) for decision in book.decisions)
