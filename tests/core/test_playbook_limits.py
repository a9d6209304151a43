"""Who may start when not all can: pools, slots, priorities, limits of daemon and dag, force, and holds."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.core import views
from supervisor.core.model import Dag
from tests.core.playbook import NOON, Playbook, ends, hold, job, later, release, reload, retry, start, stop


def waiting_for(book: Playbook, name: str) -> list[str]:
    live = book.live(name)
    [shown] = views.status_view(book.engine, [live.run], {name}, [], book.now)["jobs"]
    return [f"{each['kind']}: {each['what']}" for each in shown["waiting_for"]]


def test_no_more_at_once_than_the_daemon_allows() -> None:
    book = Playbook(*map(job, "abcd"), max_running=2) >> start() << "launch a, launch b"
    assert waiting_for(book, "c") == ["slot: max_running (2 at once)"]
    assert (
        book
        >> ends("b") << "b success, launch c"
        >> ends("a") << "a success, launch d"
    )  # fmt: skip


def test_no_more_at_once_than_the_dag_allows_over_all_its_runs() -> None:
    book = Playbook(job("a"), job("b"), job("x", dag="other"), dags=[Dag(name="main", max_running=1)])
    book = book >> start() << "launch a, launch x"
    assert waiting_for(book, "b") == ["slot: dag main (1 at once)"]
    assert book >> ends("a") << "a success, launch b"


def test_a_pool_gives_out_its_slots() -> None:
    book = Playbook(
        job("a", pool="db", slots=2), job("b", pool="db"), job("c", pool="db"), job("d"), pools={"db": 3}
    ) >> start() << "launch a, launch b, launch d"  # fmt: skip
    assert waiting_for(book, "c") == ["slot: pool db (3 slots)"]
    assert book >> ends("b") << "b success, launch c"


def test_within_a_pool_a_big_job_is_not_starved_by_small_ones() -> None:
    pool: dict[str, Any] = {"pool": "db"}
    assert (
        Playbook(job("a", **pool), job("b", **pool), job("big", **pool, slots=2), job("c", **pool), pools={"db": 2})
        >> start() << "launch a, launch b"
        >> ends("a") << "a success"
        >> ends("b") << "b success, launch big"
        >> ends("big") << "big success, launch c"
    )  # fmt: skip


def test_a_big_job_that_goes_away_makes_room_for_those_behind_it() -> None:
    pool: dict[str, Any] = {"pool": "db"}
    assert (
        Playbook(job("a", **pool), job("big", **pool, slots=2), job("c", **pool), pools={"db": 2})
        >> start() << "launch a"
        >> stop("big") << "big stopped, launch c"
    )  # fmt: skip


def test_higher_priority_first_then_first_come_first_served() -> None:
    assert (
        Playbook(job("a"), job("b"), job("c", priority=5), job("d", priority=5), max_running=1)
        >> start() << "launch c"
        >> ends("c") << "c success, launch d"
        >> ends("d") << "d success, launch a"
    )  # fmt: skip


def test_a_job_that_wants_more_than_the_pool_has_runs_when_it_is_empty() -> None:
    assert (
        Playbook(job("a", pool="db"), job("big", pool="db", slots=9), pools={"db": 2})
        >> start() << "launch a"
        >> ends("a") << "a success, launch big"
    )  # fmt: skip


def test_a_reload_changes_the_limits_at_once() -> None:
    jobs = [job("a", pool="db"), job("b", pool="db"), job("c", pool="db")]
    assert (
        Playbook(*jobs, pools={"db": 1})
        >> start() << "launch a"
        >> reload(*jobs, pools={"db": 2}) << "launch b"
        >> reload(*jobs, pools={"db": 1})
        >> ends("a") << "a success"
        >> ends("b") << "b success, launch c"
    )  # fmt: skip


def test_a_pool_that_is_gone_gives_one_slot() -> None:
    jobs = [job("a", pool="db"), job("b", pool="db")]
    book = Playbook(*jobs, pools={"db": 1}) >> start() << "launch a" >> reload(*jobs)
    assert book >> ends("a") << "a success, launch b"


def test_slots_are_given_back_however_an_attempt_ends() -> None:
    assert (
        Playbook(job("a", pool="db", retries=1), job("b", pool="db"), pools={"db": 1})
        >> start() << "launch a"
        >> ends("a", 1) << "a queued, launch b"
        >> ends("b") << "b success, launch a 2"
    )  # fmt: skip


# ---- force -----------------------------------------------------------------------------------------


def test_force_ignores_needs_time_and_slots() -> None:
    book = Playbook(job("a", pool="db"), job("b", ["a"], pool="db"), job("c"), pools={"db": 1}, max_running=1)
    assert (
        book
        >> start() << "launch a"
        >> start("b", force=True) << "launch b"
        >> start("c", force=True) << "launch c"
        >> ends("b") << "b success"
        >> ends("a") << "a success"
        >> ends("c") << "c success, main success"
    )  # fmt: skip


def test_force_unblocks() -> None:
    book = Playbook(job("a"), job("b", ["a"]), job("c", ["b"])) >> start() << "launch a" >> ends("a", 1)
    book = book << "a failed, b blocked, c blocked, main failed" >> start("b", force=True)
    assert book << "b queued, c queued, launch b, main resumed" >> ends("b") << "b success, launch c"


def test_force_does_not_wait_for_a_retry_delay_but_the_next_retry_does() -> None:
    assert (
        Playbook(job("a", retries=2, retry_delay_s=60.0))
        >> start() << "launch a"
        >> ends("a", 1) << "a queued"
        >> start("a")
        >> start("a", force=True) << "launch a 2"
        >> later(60)
        >> ends("a", 1) << "a queued"
        >> later(60) << "launch a 3"
    )  # fmt: skip


def test_a_forced_new_run_starts_all_at_once() -> None:
    book = Playbook(job("a"), job("b", ["a"]), job("c", enabled=False), max_running=1) >> start(force=True)
    assert book << "c skipped, a queued, b queued, launch a, launch b"


# ---- holds -----------------------------------------------------------------------------------------


def test_a_held_job_starts_nothing_new() -> None:
    book = (
        Playbook(job("a"), job("b", ["a"]))
        >> hold("b", reason="disk full") << "b held"
        >> start() << "launch a"
        >> ends("a") << "a success"
    )  # fmt: skip
    assert waiting_for(book, "b") == ["hold: b: disk full"]
    assert book >> release("b") << "b released, launch b"
    assert book.result["starts"] == ["b"]


def test_what_runs_goes_on_under_a_hold() -> None:
    assert (
        Playbook(job("a", retries=1))
        >> start() << "launch a"
        >> hold("a") << "a held"
        >> ends("a", 1) << "a queued"
        >> release("a") << "a released, launch a 2"
    )  # fmt: skip


def test_a_held_dag_starts_nothing_new_not_even_by_force() -> None:
    book = Playbook(job("a"), job("b", ["a"]), job("x", dag="other")) >> hold("main") << "main held"
    assert (
        book
        >> start() << "launch x"
        >> start("a", force=True)
        >> hold("a") << "a held"
        >> release("main") << "main released"
    )  # fmt: skip
    assert book.result["starts"] == []
    assert book >> release("a") << "a released, launch a"


def test_a_hold_takes_out_of_the_queue_and_a_release_puts_back() -> None:
    assert (
        Playbook(job("a"), job("b"), job("c"), max_running=1)
        >> start() << "launch a"
        >> hold("b") << "b held"
        >> ends("a") << "a success, launch c"
        >> release("b") << "b released"
        >> ends("c") << "c success, launch b"
    )  # fmt: skip


def test_holding_twice_and_releasing_what_is_not_held_is_no_error() -> None:
    book = Playbook(job("a")) >> hold("a") << "a held" >> hold("a")
    assert book.ignored == {"a": "is held already by ann"}
    assert book.result["changed"] == []
    assert book >> release("a", "main") << "a released"
    assert book.ignored == {"main": "is not held"}
    assert book.result["changed"] == [{"job": "a", "from": "held", "to": "released"}]


def test_a_hold_with_an_end_is_lifted_by_itself() -> None:
    assert (
        Playbook(job("a"))
        >> hold("a", until=NOON + 60) << "a held"
        >> start()
        >> later(59)
        >> later(1) << "a released, launch a"
    )  # fmt: skip


def test_an_end_that_was_released_before_does_not_lift_a_later_hold() -> None:
    assert (
        Playbook(job("a"))
        >> hold("a", until=NOON + 60) << "a held"
        >> release("a") << "a released"
        >> hold("a") << "a held"
        >> later(60)
    )  # fmt: skip


def test_a_hold_outlives_the_daemon() -> None:
    book = Playbook(job("a")) >> hold("a", until=NOON + 60) << "a held" >> start()
    assert book.reborn() >> later(60) << "a released, launch a"


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (hold(), "wrong_params"),
        (hold("aa"), "unknown_name"),
        (hold("a", until=NOON - 1), "wrong_params"),
        (release(), "wrong_params"),
        (release("aa"), "unknown_name"),
    ],
)
def test_holds_that_make_no_sense_are_refused(step: Any, kind: str) -> None:
    book = Playbook(job("a")) >> step << kind
    assert book.engine.holds == {}


def test_a_hold_may_be_released_after_its_job_is_gone() -> None:
    book = Playbook(job("a"), job("b")) >> hold("a") << "a held" >> reload(job("b"))
    assert book >> release("a") << "a released"


def test_retry_delays_are_shown_until_they_are_over() -> None:
    book = Playbook(job("a", retries=1, retry_delay_s=60.0)) >> start() << "launch a" >> ends("a", 1) << "a queued"
    assert waiting_for(book, "a") == ["retry: 2026-11-23T12:01:00.000Z"]
    assert book >> retry("a") << "refused"
