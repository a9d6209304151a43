"""What a job waits for: needs and outcomes, blocking, skipping, and going on by itself."""

from __future__ import annotations

import pytest

from supervisor.core.model import Job
from tests.core.playbook import Playbook, ends, is_gone, is_lost, job, mark, reload, restart, retry, skip, start, stop


def upstream_ends(needs: str, step: str) -> Playbook:
    """`up` has ended in some way; `down` needs some outcome of it."""
    up = job("up", skip_codes=(3,))
    steps = {"success": ends("up"), "failed": ends("up", 1), "lost": is_lost("up"), "skip code": ends("up", 3)}
    return (Playbook(up, job("down", [needs])) >> start() << "launch up" >> steps[step]).forget()


@pytest.mark.parametrize(
    ("needs", "ended", "state"),
    [
        ("up", "success", "running"),
        ("up", "failed", "blocked"),
        ("up", "lost", "blocked"),
        ("up", "skip code", "skipped"),
        ("up:failed", "success", "skipped"),
        ("up:failed", "failed", "running"),
        ("up:failed", "lost", "running"),
        ("up:failed", "skip code", "skipped"),
        ("up:done", "success", "running"),
        ("up:done", "failed", "running"),
        ("up:done", "lost", "running"),
        ("up:done", "skip code", "running"),
    ],
)
def test_what_an_outcome_means_to_those_that_need_it(needs: str, ended: str, state: str) -> None:
    assert upstream_ends(needs, ended).states["down"] == state


def test_jobs_start_in_the_order_of_the_configuration() -> None:
    assert Playbook(job("c"), job("a"), job("b")) >> start() << "launch c, launch a, launch b"


def test_all_of_the_list_is_needed() -> None:
    assert (
        Playbook(job("a"), job("b"), job("c", ["a", "b"]))
        >> start() << "launch a, launch b"
        >> ends("b") << "b success"
        >> ends("a") << "a success, launch c"
        >> ends("c") << "c success, main success"
    )  # fmt: skip


def test_any_of_an_inner_list_is_enough() -> None:
    assert (
        Playbook(job("eu"), job("us"), job("sum", [["eu", "us:done"]]))
        >> start() << "launch eu, launch us"
        >> ends("eu", 1) << "eu failed"
        >> ends("us", 1) << "us failed, launch sum"
        >> ends("sum") << "sum success, main failed"
    )  # fmt: skip


def test_a_group_is_impossible_only_if_all_of_it_is() -> None:
    assert (
        Playbook(job("a"), job("b"), job("c", [["a:failed", "b:failed"]]))
        >> start() << "launch a, launch b"
        >> ends("a") << "a success"
        >> ends("b") << "b success, c skipped, main success"
    )  # fmt: skip


def test_an_impossible_condition_skips_the_whole_chain_that_needs_its_success() -> None:
    assert (
        Playbook(job("a"), job("b", ["a:failed"]), job("c", ["b"]), job("d", ["c"]), job("e", ["d:done"]))
        >> start() << "launch a"
        >> ends("a") << "a success, b skipped, c skipped, d skipped, launch e"
        >> ends("e") << "e success, main success"
    )  # fmt: skip


def test_a_failure_blocks_everything_after_it_and_skips_nothing() -> None:
    assert (
        Playbook(job("a"), job("b", ["a"]), job("c", ["b"]), job("d", ["c:done"]), job("x"))
        >> start() << "launch a, launch x"
        >> ends("a", 1) << "a failed, b blocked, c blocked, d blocked"
        >> ends("x") << "x success, main failed"
    )  # fmt: skip


def test_a_retry_that_succeeds_lets_everything_after_it_go_on() -> None:
    assert (
        Playbook(job("a"), job("b", ["a"]), job("c", ["b"]))
        >> start() << "launch a"
        >> ends("a", 1) << "a failed, b blocked, c blocked, main failed"
        >> retry("a") << "a queued, b queued, c queued, launch a 2, main resumed"
        >> ends("a") << "a success, launch b"
        >> ends("b") << "b success, launch c"
        >> ends("c") << "c success, main success"
    )  # fmt: skip


def test_a_retry_that_fails_blocks_again() -> None:
    assert (
        Playbook(job("a"), job("b", ["a"]))
        >> start() << "launch a"
        >> ends("a", 1) << "a failed, b blocked, main failed"
        >> retry("a") << "a queued, b queued, launch a 2, main resumed"
        >> ends("a", 1) << "a failed, b blocked, main failed"
    )  # fmt: skip


def test_blocked_by_two_goes_on_when_both_succeed() -> None:
    assert (
        Playbook(job("a"), job("b"), job("c", ["a", "b"]))
        >> start() << "launch a, launch b"
        >> ends("a", 1) << "a failed, c blocked"
        >> ends("b", 1) << "b failed, main failed"
        >> retry("a") << "a queued, launch a 2, main resumed"
        >> ends("a") << "a success, main failed"
        >> mark("b") << "b success, c queued, launch c, main resumed"
        >> ends("c") << "c success, main success"
    )  # fmt: skip


def test_a_blocked_group_member_does_not_block_while_another_may_succeed() -> None:
    assert (
        Playbook(job("a"), job("b"), job("c", [["a", "b"]]))
        >> start() << "launch a, launch b"
        >> ends("a", 1) << "a failed"
        >> ends("b") << "b success, launch c"
        >> ends("c") << "c success, main failed"
    )  # fmt: skip


def test_a_stopped_upstream_blocks() -> None:
    assert (
        Playbook(job("a"), job("b", ["a:done"]))
        >> start() << "launch a"
        >> stop("a") << "stop a"
        >> is_gone("a") << "a stopped, b blocked, main failed"
        >> start("a") << "a queued, b queued, launch a 2, main resumed"
    )  # fmt: skip


def test_the_obstacle_is_told() -> None:
    book = upstream_ends("up", "failed")
    assert book.live("down").node.reason == "needs up, which is failed"
    book = upstream_ends("up:failed", "success")
    assert book.live("down").node.reason == "needs up:failed, which is success"


# ---- an operator's skip ----------------------------------------------------------------------------


def test_an_operators_skip_meets_a_need_for_success() -> None:
    assert (
        Playbook(job("a"), job("b", ["a"]), job("c", ["a:failed"]))
        >> start() << "launch a"
        >> ends("a", 1) << "a failed, b blocked, launch c"
        >> skip("a") << "a skipped, b queued, launch b"
        >> ends("c") << "c success"
        >> ends("b") << "b success, main success"
    )  # fmt: skip


def test_a_skip_code_does_not_meet_a_need_for_success_until_an_operator_skips_it_too() -> None:
    assert (
        Playbook(job("a", skip_codes=(3,)), job("b", ["a"]))
        >> start() << "launch a"
        >> ends("a", 3) << "a skipped, b skipped, main success"
        >> skip("a") << "a skipped"
        >> start("b") << "b queued, launch b, main resumed"
    )  # fmt: skip


def test_a_job_that_was_ruled_out_may_be_asked_for_but_is_ruled_out_again() -> None:
    assert (
        Playbook(job("a"), job("b", ["a:failed"]))
        >> start() << "launch a"
        >> ends("a") << "a success, b skipped, main success"
        >> start("b") << "b queued, b skipped"
    )  # fmt: skip


def test_skipped_jobs_after_a_failure_are_queued_together_with_it() -> None:
    """Nobody is ruled out by the state that an upstream had before the same command queued it too."""
    jobs: list[Job] = [job("x"), job("a", ["x:done"]), job("b", ["a:failed"]), job("c", ["b"])]
    assert (
        Playbook(*jobs)
        >> start() << "launch x"
        >> ends("x", 1) << "x failed, launch a"
        >> ends("a") << "a success, b skipped, c skipped, main failed"
        >> retry("x", downstream=True) << "x queued, a queued, b queued, c queued, launch x 2, main resumed"
        >> ends("x") << "x success, launch a 2"
        >> ends("a", 1) << "a failed, launch b"
        >> ends("b") << "b success, launch c"
        >> ends("c") << "c success, main failed"
    )  # fmt: skip


# ---- enabled = false -------------------------------------------------------------------------------


def test_a_disabled_job_is_left_out_and_what_needs_it_goes_on() -> None:
    assert (
        Playbook(job("a", enabled=False), job("b", ["a"]), job("c", ["b"], enabled=False))
        >> start() << "a skipped, c skipped, launch b"
        >> ends("b") << "b success, main success"
    )  # fmt: skip


def test_a_disabled_job_cannot_be_started() -> None:
    book = Playbook(job("a", enabled=False), job("b")) >> start("a") << "refused"
    assert book.refusal is not None
    assert "disabled" in book.refusal.message
    assert book.engine.registry.newest("main") is None
    book = book >> start() << "a skipped, launch b"
    for step in (start("a"), restart("a")):
        book = book >> step << "refused"
        assert "disabled" in (book.refusal.message if book.refusal else "")


def test_a_run_of_disabled_jobs_only_succeeds_at_once() -> None:
    assert Playbook(job("a", enabled=False)) >> start() << "a skipped, main success"


def test_an_empty_dag_succeeds_at_once() -> None:
    book = Playbook(job("a")) >> reload(dags=[*Playbook(job("a")).engine.definitions.dags.values()])
    assert book >> start() << "main success"
