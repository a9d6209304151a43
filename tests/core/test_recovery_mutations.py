"""Planted bugs in what happens after a crash, each of which the worlds of `crashes` must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from supervisor.core import transitions
from supervisor.core.attempts import Attempts
from supervisor.core.engine import Engine
from supervisor.core.events import Cause, Ending, Exited, NotStarted, Now, SaveAttempt
from supervisor.core.flow import Flow
from supervisor.core.ledger import Ledger
from supervisor.core.live import LiveNode, LiveRun
from supervisor.core.model import ACTIVE, Finish, Snapshot, State
from supervisor.core.ready import ReadyQueue
from supervisor.core.transitions import Move, Verdict
from tests.core.crashes import survive
from tests.core.hunting import Mutation, Patch, hunt

STEPS = 800


def _before_restore(patch: Patch, spoil: Callable[[Snapshot], None]) -> None:
    restore = Engine.restore

    def spoil_and_restore(engine: Engine, snapshot: Snapshot, now: Now) -> None:
        spoil(snapshot)
        restore(engine, snapshot, now)

    patch.setattr(Engine, "restore", spoil_and_restore)


def _after_restore(patch: Patch, spoil: Callable[[Engine], None]) -> None:
    restore = Engine.restore

    def restore_and_spoil(engine: Engine, snapshot: Snapshot, now: Now) -> None:
        restore(engine, snapshot, now)
        spoil(engine)

    patch.setattr(Engine, "restore", restore_and_spoil)


def _of_nodes(patch: Patch, **fields: Any) -> None:
    """What nodes have in these fields is not restored."""

    def spoil(snapshot: Snapshot) -> None:
        snapshot.nodes = [replace(node, **fields) for node in snapshot.nodes]

    _before_restore(patch, spoil)


# ---- attempts under way --------------------------------------------------------------------------------


def an_attempt_under_way_is_forgotten(patch: Patch) -> None:
    def spoil(engine: Engine) -> None:
        if engine.attempts.under_way:
            engine.attempts.under_way.popitem()

    _after_restore(patch, spoil)


def a_job_under_way_is_queued_again(patch: Patch) -> None:
    def spoil(snapshot: Snapshot) -> None:
        for node in snapshot.nodes:
            if node.state is State.RUNNING:
                node.state = State.QUEUED

    _before_restore(patch, spoil)


def what_never_started_takes_an_attempt_after_a_crash(patch: Patch) -> None:
    not_started = Attempts.not_started

    def consume(attempts: Attempts, event: NotStarted) -> None:
        live, is_old = attempts.under_way.get(event.attempt_id), event.attempt_id <= attempts._refused_up_to
        not_started(attempts, event)
        if live is not None and is_old:
            live.node.attempts += 1

    patch.setattr(Attempts, "not_started", consume)


def what_never_started_counts_as_lost(patch: Patch) -> None:
    def lose(attempts: Attempts, event: NotStarted) -> None:
        attempts.exited(Exited(event.attempt_id, Ending(cause=Cause.LOST)))

    patch.setattr(Attempts, "not_started", lose)


def what_never_started_is_told_again(patch: Patch) -> None:
    """It stays under way, and gives its slots back a second time."""
    not_started = Attempts.not_started

    def keep(attempts: Attempts, event: NotStarted) -> None:
        live = attempts.under_way.get(event.attempt_id)
        not_started(attempts, event)
        if live is not None and live.state is State.QUEUED:
            attempts.under_way[event.attempt_id] = live

    patch.setattr(Attempts, "not_started", keep)


def an_end_that_is_repeated_after_a_crash_is_handled_twice(patch: Patch) -> None:
    exited = Attempts.exited

    def handle_again(attempts: Attempts, event: Exited) -> None:
        for live_run in attempts._flow._registry:
            for live in live_run.nodes.values():
                is_final = live.attempt is not None and live.attempt.state not in ACTIVE
                if is_final and live.node.attempt_id == event.attempt_id and live.state is State.FAILED:
                    attempts._flow.move(live, Move.ASK)
        exited(attempts, event)

    patch.setattr(Attempts, "exited", handle_again)


def slots_of_adopted_attempts_are_never_given_back(patch: Patch) -> None:
    occupy, release = ReadyQueue.occupy, ReadyQueue.release
    adopted = set()

    def occupy_and_note(queue: ReadyQueue[LiveNode], live: LiveNode) -> None:
        adopted.add(live)
        occupy(queue, live)

    def release_but(queue: ReadyQueue[LiveNode], live: LiveNode) -> None:
        if live in adopted:
            for limit, cost in queue._running[live]:
                limit.used += cost
        release(queue, live)

    patch.setattr(ReadyQueue, "occupy", occupy_and_note)
    patch.setattr(ReadyQueue, "release", release_but)


def adopted_attempts_take_no_slots(patch: Patch) -> None:
    patch.setattr(ReadyQueue, "occupy", lambda queue, live: queue._running.setdefault(live, ()))


def a_stop_is_not_told_again(patch: Patch) -> None:
    _after_restore(patch, lambda engine: engine.ledger._decisions.clear())


def a_job_that_has_reported_is_not_told_again_to_end(patch: Patch) -> None:
    resume = Attempts.resume

    def resume_but(attempts: Attempts, live: LiveNode) -> None:
        kept = live.job
        if live.state is State.RUNNING and live.attempt is not None and live.attempt.finished_at is None:
            live.job = replace(live.job, finish=Finish.TREE)
        resume(attempts, live)
        live.job = kept

    patch.setattr(Attempts, "resume", resume_but)


def the_time_for_a_report_is_not_kept(patch: Patch) -> None:
    resume, expect_report = Attempts.resume, Attempts._expect_report

    def resume_but(attempts: Attempts, live: LiveNode) -> None:
        patch.setattr(Attempts, "_expect_report", lambda _attempts, _live: None)
        resume(attempts, live)
        patch.setattr(Attempts, "_expect_report", expect_report)

    patch.setattr(Attempts, "resume", resume_but)


def the_time_for_a_report_begins_anew(patch: Patch) -> None:
    def spoil(snapshot: Snapshot) -> None:
        for attempt in snapshot.attempts:
            attempt.duration_s = None if attempt.finished_at is None else 0.0

    _before_restore(patch, spoil)


def a_report_is_forgotten(patch: Patch) -> None:
    def spoil(snapshot: Snapshot) -> None:
        snapshot.attempts = [replace(attempt, reported=None) for attempt in snapshot.attempts]

    _before_restore(patch, spoil)


def a_report_is_not_saved(patch: Patch) -> None:
    report = Attempts.report

    def report_but(attempts: Attempts, live: LiveNode, *words: Any) -> None:
        decide = attempts._ledger.decide
        attempts._ledger.decide = lambda each: None if isinstance(each, SaveAttempt) else decide(each)  # type: ignore
        report(attempts, live, *words)
        attempts._ledger.decide = decide  # type: ignore[method-assign]

    patch.setattr(Attempts, "report", report_but)


# ---- lost ------------------------------------------------------------------------------------------------


def what_is_lost_is_tried_again_unasked(patch: Patch) -> None:
    conclude = Attempts.conclude

    def conclude_and_ask(attempts: Attempts, live: LiveNode, ending: Ending | None, verdict: Verdict) -> None:
        conclude(attempts, live, ending, verdict)
        if live.state is State.LOST:
            attempts._flow.ask(live)

    patch.setattr(Attempts, "conclude", conclude_and_ask)


def what_is_lost_counts_as_failed_and_uses_a_retry(patch: Patch) -> None:
    judge = transitions.judge

    def guess(*told: Any) -> Verdict:
        verdict = judge(*told)
        return replace(verdict, move=Move.FAIL) if verdict.move is Move.LOSE else verdict

    patch.setattr(transitions, "judge", guess)


def what_is_lost_counts_as_success(patch: Patch) -> None:
    judge = transitions.judge

    def guess(*told: Any) -> Verdict:
        verdict = judge(*told)
        return replace(verdict, move=Move.SUCCEED) if verdict.move is Move.LOSE else verdict

    patch.setattr(transitions, "judge", guess)


def retry_lost_does_nothing(patch: Patch) -> None:
    conclude = Attempts.conclude

    def conclude_but(attempts: Attempts, live: LiveNode, ending: Ending | None, verdict: Verdict) -> None:
        kept, live.job = live.job, replace(live.job, retry_lost=False)
        conclude(attempts, live, ending, verdict)
        live.job = kept

    patch.setattr(Attempts, "conclude", conclude_but)


# ---- what waits -----------------------------------------------------------------------------------------


def retries_start_anew(patch: Patch) -> None:
    _of_nodes(patch, tries=0)


def a_retry_does_not_wait(patch: Patch) -> None:
    _of_nodes(patch, retry_at=None)


def a_retry_waits_for_ever(patch: Patch) -> None:
    _after_restore(patch, lambda engine: engine.timers._heap.clear())


def a_restart_is_forgotten_while_it_stops(patch: Patch) -> None:
    _of_nodes(patch, again=False)


def force_is_forgotten(patch: Patch) -> None:
    _of_nodes(patch, forced=False)


def an_operators_word_is_forgotten(patch: Patch) -> None:
    _of_nodes(patch, by_operator=False)


def holds_are_forgotten(patch: Patch) -> None:
    _before_restore(patch, lambda snapshot: snapshot.holds.clear())


def holds_have_no_end(patch: Patch) -> None:
    def spoil(snapshot: Snapshot) -> None:
        snapshot.holds = [replace(hold, until=None) for hold in snapshot.holds]

    _before_restore(patch, spoil)


def the_gate_of_a_restart_is_forgotten(patch: Patch) -> None:
    def spoil(engine: Engine) -> None:
        for live_run in engine.registry:
            live_run.run.after = None

    _after_restore(patch, spoil)


def the_gate_of_a_restart_stays_closed(patch: Patch) -> None:
    def restore_but(engine: Engine, snapshot: Snapshot, now: Now) -> None:
        patch.setattr(Flow, "open_gate", lambda _flow, _live_run: None)
        restore(engine, snapshot, now)
        patch.setattr(Flow, "open_gate", open_gate)
        engine.flow._gone_quiet.clear()

    def settle_but(flow: Flow) -> None:
        flow._gone_quiet.clear()
        settle(flow)

    restore, open_gate, settle = Engine.restore, Flow.open_gate, Flow.settle
    patch.setattr(Engine, "restore", restore_but)
    patch.setattr(Flow, "settle", settle_but)


def waiting_jobs_are_not_looked_at(patch: Patch) -> None:
    _after_restore(patch, lambda engine: engine.flow._unsettled.clear())


def an_unfinished_run_is_left_out(patch: Patch) -> None:
    def spoil(snapshot: Snapshot) -> None:
        snapshot.runs = snapshot.runs[-1:]
        kept = {run.id for run in snapshot.runs}
        snapshot.nodes = [node for node in snapshot.nodes if node.run_id in kept]

    _before_restore(patch, spoil)


# ---- numbers and names ------------------------------------------------------------------------------------


def ids_of_the_journal_start_anew(patch: Patch) -> None:
    _before_restore(patch, lambda snapshot: setattr(snapshot, "last_event_id", 0))


def an_id_of_the_journal_is_left_out_at_a_restart(patch: Patch) -> None:
    def spoil(engine: Engine) -> None:
        engine.ledger.last_event_id += 1

    _after_restore(patch, spoil)


def ids_of_attempts_start_anew(patch: Patch) -> None:
    patch.setattr(Attempts, "continue_after", lambda attempts, last_id: None)


def the_id_of_an_attempt_that_never_started_is_given_again(patch: Patch) -> None:
    def spoil(snapshot: Snapshot) -> None:
        snapshot.last_attempt_id = max((attempt.id for attempt in snapshot.attempts), default=0)

    _before_restore(patch, spoil)


def ids_of_runs_start_anew(patch: Patch) -> None:
    _before_restore(patch, lambda snapshot: setattr(snapshot, "last_run_id", 0))


# ---- halves -----------------------------------------------------------------------------------------------


def the_last_job_of_a_command_is_not_saved(patch: Patch) -> None:
    """Half of a command: found at the next restart, if not before."""
    close = Ledger.close

    def close_but(ledger: Ledger) -> Any:
        if len(ledger._nodes) > 2:
            ledger._nodes.popitem()
        return close(ledger)

    patch.setattr(Ledger, "close", close_but)


def a_new_run_is_saved_without_its_end(patch: Patch) -> None:
    save_run = Ledger.save_run

    def save_but(ledger: Ledger, live_run: LiveRun) -> None:
        if live_run.run.finished_at is None:
            save_run(ledger, live_run)

    patch.setattr(Ledger, "save_run", save_but)


def autostart_does_not_see_what_is_unfinished(patch: Patch) -> None:
    on_booted = Engine._on_booted

    def on_booted_blindly(engine: Engine) -> None:
        patch.setattr(LiveRun, "unfinished", False)
        on_booted(engine)
        patch.setattr(LiveRun, "unfinished", unfinished)

    unfinished = LiveRun.unfinished
    patch.setattr(Engine, "_on_booted", on_booted_blindly)


#: Some job is not where it should be: told by its state, or by the answer to a command about it.
WRONG = (
    "should be|starts, and|could start|is restored as|by the journal|was (answered|refused|done)|leaving|does not exist"
)

MUTATIONS: list[tuple[Mutation, str]] = [
    (an_attempt_under_way_is_forgotten, f"looks for other attempts|{WRONG}"),
    (a_job_under_way_is_queued_again, "is restored as queued, was running"),
    (what_never_started_takes_an_attempt_after_a_crash, "attempts=|attempt [0-9]+, should be"),
    (what_never_started_counts_as_lost, f"other attempts than there were|{WRONG}"),
    (what_never_started_is_told_again, f"looks for|IllegalMove|KeyError|{WRONG}"),
    (an_end_that_is_repeated_after_a_crash_is_handled_twice, WRONG),
    (slots_of_adopted_attempts_are_never_given_back, "could start and does not"),
    (adopted_attempts_take_no_slots, "starts over"),
    (a_stop_is_not_told_again, "was not told to"),
    (a_job_that_has_reported_is_not_told_again_to_end, "was not told to end"),
    (the_time_for_a_report_is_not_kept, WRONG),
    (the_time_for_a_report_begins_anew, f"saved Attempt|{WRONG}"),
    (a_report_is_forgotten, f"was reported|saved Attempt|{WRONG}"),
    (a_report_is_not_saved, f"was reported|saved Attempt|{WRONG}"),
    (what_is_lost_is_tried_again_unasked, WRONG),
    (what_is_lost_counts_as_failed_and_uses_a_retry, f"tries=|{WRONG}"),
    (what_is_lost_counts_as_success, WRONG),
    (retry_lost_does_nothing, WRONG),
    (retries_start_anew, f"tries=|{WRONG}"),
    (a_retry_does_not_wait, "its retry is due in|retry_at="),
    (a_retry_waits_for_ever, f"retry_at=|held is|does not come|{WRONG}"),
    (a_restart_is_forgotten_while_it_stops, f"saved Node|{WRONG}"),
    (force_is_forgotten, f"forced=|though forced|{WRONG}"),
    (an_operators_word_is_forgotten, f"by_operator=|{WRONG}"),
    (holds_are_forgotten, f"held is|{WRONG}"),
    (holds_have_no_end, f"held is|{WRONG}"),
    (the_gate_of_a_restart_is_forgotten, f"is not gone|waits for|saved Run|{WRONG}"),
    (the_gate_of_a_restart_stays_closed, "waits for|could start"),
    (waiting_jobs_are_not_looked_at, "could start and does not"),
    (an_unfinished_run_is_left_out, "AssertionError: (north|south)@"),
    (ids_of_the_journal_start_anew, "the journal goes on from 0"),
    (an_id_of_the_journal_is_left_out_at_a_restart, "the journal goes on from"),
    (ids_of_attempts_start_anew, "was given twice|is taken|, became"),
    (the_id_of_an_attempt_that_never_started_is_given_again, "was given twice|is taken|, became"),
    (ids_of_runs_start_anew, "in memory already|is taken|nobody asked|no run of"),
    (the_last_job_of_a_command_is_not_saved, f"KeyError|{WRONG}"),
    (a_new_run_is_saved_without_its_end, f"saved Run|is defined otherwise|{WRONG}"),
    (autostart_does_not_see_what_is_unfinished, f"nobody asked for|no run of|was made for|{WRONG}"),
]


@pytest.mark.parametrize(("mutation", "words"), MUTATIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_bug_is_noticed(mutation: Mutation, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hunt(mutation, words, lambda seed: survive(seed, STEPS), monkeypatch)
