"""Planted bugs, each of which the simulation must notice; else it is the simulation that is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from supervisor.core import graph, live, planner, transitions
from supervisor.core.attempts import Attempts
from supervisor.core.engine import Engine
from supervisor.core.events import Decision, Ending, Now, Refusal, Signal
from supervisor.core.flow import Flow
from supervisor.core.graph import Gate, Standing
from supervisor.core.ledger import Ledger
from supervisor.core.live import Edge, LiveNode, LiveRun
from supervisor.core.model import Job, Snapshot, State
from supervisor.core.ready import ReadyQueue
from supervisor.core.transitions import Move, Verdict
from supervisor.core.waiters import Waiter
from tests.core.hunting import Mutation, Patch, hunt
from tests.core.simulation import simulate

STEPS = 200


# ---- what upstreams mean -----------------------------------------------------------------------------


def skipped_counts_as_met(patch: Patch) -> None:
    patch.setitem(graph._STANDINGS, State.SKIPPED, graph._SKIPPED_BY_OPERATOR)


def an_operators_skip_is_not_met(patch: Patch) -> None:
    patch.setattr(live, "standings", lambda upstream, _by_operator: graph._STANDINGS[upstream])


def a_failure_skips_instead_of_blocking(patch: Patch) -> None:
    patch.setitem(graph._STANDINGS, State.FAILED, graph._row(Standing.IMPOSSIBLE, Standing.MET, Standing.MET))


def lost_does_not_count_as_failed(patch: Patch) -> None:
    patch.setitem(graph._STANDINGS, State.LOST, graph._STUCK)


def any_of_means_all_of(patch: Patch) -> None:
    patch.setattr(Gate, "best", Gate.worst)


def _deaf_to(patch: Patch, deaf: Standing) -> None:
    follow = Edge.follow

    def follow_but(edge: Edge, means: graph.Standings) -> bool:
        return follow(edge, means) and edge.downstream.needs.worst is not deaf

    patch.setattr(Edge, "follow", follow_but)


def a_block_is_not_passed_on(patch: Patch) -> None:
    _deaf_to(patch, Standing.BLOCKED)


def an_unblock_is_not_passed_on(patch: Patch) -> None:
    _deaf_to(patch, Standing.PENDING)


def blocked_does_not_fail_the_run(patch: Patch) -> None:
    def state(live_run: LiveRun) -> State:
        live_run.counts[State.BLOCKED], kept = 0, live_run.counts[State.BLOCKED]
        try:
            return real.fget(live_run)  # type: ignore[no-any-return]
        finally:
            live_run.counts[State.BLOCKED] = kept

    real: Any = LiveRun.state
    patch.setattr(LiveRun, "state", property(state))


# ---- endings -----------------------------------------------------------------------------------------


def one_retry_too_many(patch: Patch) -> None:
    may_retry = transitions.may_retry
    patch.setattr(transitions, "may_retry", lambda job, tries, ending: may_retry(job, tries - 1, ending))


def one_retry_too_few(patch: Patch) -> None:
    may_retry = transitions.may_retry
    patch.setattr(transitions, "may_retry", lambda job, tries, ending: may_retry(job, tries + 1, ending))


def retries_do_not_wait(patch: Patch) -> None:
    patch.setattr(Attempts, "_delay", lambda _attempts, _live, _delay_s: None)


def lost_is_guessed_to_be_failed(patch: Patch) -> None:
    judge = transitions.judge

    def guess(job: Job, attempt: Any, ending: Ending) -> Verdict:
        verdict = judge(job, attempt, ending)
        return Verdict(Move.FAIL, verdict.reason) if verdict.move is Move.LOSE else verdict

    patch.setattr(transitions, "judge", guess)


def what_never_started_takes_an_attempt(patch: Patch) -> None:
    not_started = Attempts.not_started

    def consume(attempts: Attempts, event: Any) -> None:
        known = attempts.under_way.get(event.attempt_id)
        not_started(attempts, event)
        if known is not None:
            known.node.attempts += 1

    patch.setattr(Attempts, "not_started", consume)


def a_second_end_is_recorded_too(patch: Patch) -> None:
    conclude = Attempts.conclude

    def remember(attempts: Attempts, live_node: LiveNode, ending: Ending | None, verdict: Verdict) -> None:
        conclude(attempts, live_node, ending, verdict)
        if live_node.attempt is not None and live_node.state is State.STOPPED:
            attempts.under_way[live_node.attempt.id] = live_node

    patch.setattr(Attempts, "conclude", remember)


# ---- who may start -----------------------------------------------------------------------------------


def a_pools_slots_are_not_given_back(patch: Patch) -> None:
    release = ReadyQueue.release

    def keep_slots(queue: ReadyQueue[LiveNode], candidate: LiveNode) -> None:
        pools = [(limit, cost) for limit, cost in queue._running[candidate] if limit.in_slots]
        release(queue, candidate)
        for limit, cost in pools:
            limit.used += cost

    patch.setattr(ReadyQueue, "release", keep_slots)


def nobody_is_woken_by_a_free_slot(patch: Patch) -> None:
    patch.setattr(ReadyQueue, "_wake", lambda _queue, _limit: None)


def max_running_is_ignored(patch: Patch) -> None:
    patch.setattr(ReadyQueue, "_is_full", property(lambda _queue: False))


def a_hold_is_ignored(patch: Patch) -> None:
    patch.setattr(Flow, "held", lambda _flow, _live: None)


def the_gate_of_a_restart_is_ignored(patch: Patch) -> None:
    def may_start(_flow: Flow, live_node: LiveNode) -> bool:
        is_ready = live_node.state is State.QUEUED and live_node.standing is Standing.MET
        return is_ready and live_node.node.retry_at is None

    patch.setattr(Flow, "may_start", may_start)


def the_gate_of_a_restart_never_opens(patch: Patch) -> None:
    patch.setattr(Flow, "open_gate", lambda _flow, _live_run: None)


def force_is_forgotten(patch: Patch) -> None:
    ask = Flow.ask
    patch.setattr(Flow, "ask", lambda flow, live_node, forced=False, by=None: ask(flow, live_node, by=by))


def it_starts_jobs_while_it_leaves(patch: Patch) -> None:
    def start_ready(engine: Engine) -> None:
        while (live_node := engine.flow.ready.take()) is not None:
            engine.attempts.launch(live_node)

    patch.setattr(Engine, "_start_ready", start_ready)


# ---- records -----------------------------------------------------------------------------------------


def an_id_of_the_journal_is_left_out(patch: Patch) -> None:
    note = Ledger.note

    def note_and_skip(ledger: Ledger, kind: str, **fields: Any) -> None:
        note(ledger, kind, **fields)
        if kind == "retrying":
            ledger.last_event_id += 1

    patch.setattr(Ledger, "note", note_and_skip)


def a_blocked_job_is_not_saved(patch: Patch) -> None:
    save_node = Ledger.save_node

    def save_but(ledger: Ledger, live_node: LiveNode) -> None:
        if live_node.state is not State.BLOCKED:
            save_node(ledger, live_node)

    patch.setattr(Ledger, "save_node", save_but)


def a_finished_run_is_not_saved(patch: Patch) -> None:
    save_run = Ledger.save_run

    def save_but(ledger: Ledger, live_run: LiveRun) -> None:
        if live_run.run.finished_at is None:
            save_run(ledger, live_run)

    patch.setattr(Ledger, "save_run", save_but)


# ---- commands ----------------------------------------------------------------------------------------


def a_dry_run_is_real(patch: Patch) -> None:
    carry_out = planner._carry_out

    def carry_out_really(engine: Engine, command: Any, by: str) -> Any:
        return carry_out(engine, replace(command, dry_run=False), by)

    patch.setattr(planner, "_carry_out", carry_out_really)


def everyone_who_waits_is_answered_at_once(patch: Patch) -> None:
    patch.setattr(Waiter, "is_over", property(lambda _waiter: True))


def a_wait_is_never_given_up(patch: Patch) -> None:
    perform = planner.perform

    def perform_without_timeout(engine: Engine, event: Any) -> dict[str, Any] | Refusal | None:
        if hasattr(event.command, "timeout_s"):
            event = replace(event, command=replace(event.command, timeout_s=None))
        return perform(engine, event)

    patch.setattr(planner, "perform", perform_without_timeout)


def stop_sends_no_signal(patch: Patch) -> None:
    decide = Ledger.decide

    def decide_but(ledger: Ledger, decision: Decision) -> None:
        if not isinstance(decision, Signal):
            decide(ledger, decision)

    patch.setattr(Ledger, "decide", decide_but)


# ---- after a restart ---------------------------------------------------------------------------------


def _after_restore(patch: Patch, spoil: Callable[[Engine], None]) -> None:
    restore = Engine.restore

    def restore_and_spoil(engine: Engine, snapshot: Snapshot, now: Now) -> None:
        restore(engine, snapshot, now)
        spoil(engine)

    patch.setattr(Engine, "restore", restore_and_spoil)


def stops_are_not_told_again_after_a_restart(patch: Patch) -> None:
    _after_restore(patch, lambda engine: engine.ledger._decisions.clear())


def waiting_jobs_are_forgotten_at_a_restart(patch: Patch) -> None:
    _after_restore(patch, lambda engine: engine.flow._unsettled.clear())


def retries_are_forgotten_at_a_restart(patch: Patch) -> None:
    _after_restore(patch, lambda engine: engine.timers._heap.clear())


def running_jobs_take_no_slots_after_a_restart(patch: Patch) -> None:
    patch.setattr(ReadyQueue, "occupy", lambda queue, candidate: queue._running.setdefault(candidate, ()))


MUTATIONS: list[tuple[Mutation, str]] = [
    (skipped_counts_as_met, "needs are impossible"),
    (an_operators_skip_is_not_met, "its needs are|could start and does not"),
    (a_failure_skips_instead_of_blocking, "is skipped, its needs are blocked"),
    (lost_does_not_count_as_failed, "its needs are"),
    (any_of_means_all_of, "its needs are|could start"),
    (a_block_is_not_passed_on, "its needs are blocked"),
    (an_unblock_is_not_passed_on, "is blocked, its needs are pending"),
    (blocked_does_not_fail_the_run, "should be failed"),
    (one_retry_too_many, "expected"),
    (one_retry_too_few, "expected"),
    (retries_do_not_wait, "before its retry is due"),
    (lost_is_guessed_to_be_failed, "expected"),
    (what_never_started_takes_an_attempt, "saved Node|attempt 2, should be 1"),
    (a_second_end_is_recorded_too, "other processes than there are|KeyError"),
    (a_pools_slots_are_not_given_back, "could start and does not"),
    (nobody_is_woken_by_a_free_slot, "could start and does not"),
    (max_running_is_ignored, "max_running"),
    (a_hold_is_ignored, "though held"),
    (the_gate_of_a_restart_is_ignored, "of the older run are gone"),
    (the_gate_of_a_restart_never_opens, "could start and does not"),
    (force_is_forgotten, "is forced"),
    (it_starts_jobs_while_it_leaves, "while leaving"),
    (an_id_of_the_journal_is_left_out, "the journal goes from"),
    (a_blocked_job_is_not_saved, "saved Node"),
    (a_finished_run_is_not_saved, "saved Run"),
    (a_dry_run_is_real, "a dry run decided"),
    (everyone_who_waits_is_answered_at_once, "answered too early"),
    (a_wait_is_never_given_up, "was not given up"),
    (stop_sends_no_signal, "was not told to stop"),
    (stops_are_not_told_again_after_a_restart, "was not told to stop|saved Node"),
    (waiting_jobs_are_forgotten_at_a_restart, "could start and does not"),
    (retries_are_forgotten_at_a_restart, "could start and does not|did not end"),
    (running_jobs_take_no_slots_after_a_restart, "starts over"),
]


@pytest.mark.parametrize(("mutation", "words"), MUTATIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_bug_is_noticed(mutation: Mutation, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hunt(mutation, words, lambda seed: simulate(seed, STEPS), monkeypatch)
