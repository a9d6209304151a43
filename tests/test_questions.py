"""Questions in rotation: whose is answered when, and what one turn leaves to the next."""

from __future__ import annotations

import pytest

from supervisor.daemon import questions
from supervisor.daemon.questions import OWN, Questions


@pytest.fixture
def answered() -> list[str]:
    return []


def ask(waiting: Questions, answered: list[str], connection: int, *names: str) -> None:
    for name in names:
        waiting.add(connection, lambda name=name: answered.append(name))  # type: ignore[misc]


def test_each_connection_has_its_turn_and_keeps_its_order(answered: list[str]) -> None:
    waiting = Questions()
    ask(waiting, answered, 1, "a1", "a2", "a3")
    ask(waiting, answered, 2, "b1")
    ask(waiting, answered, OWN, "own")
    waiting.answer()
    assert answered == ["a1", "b1", "own", "a2", "a3"]
    assert not waiting


def test_when_time_is_up_one_is_answered_all_the_same(answered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "ANSWERING_S", 0.0)
    waiting = Questions()
    ask(waiting, answered, 1, "a1", "a2")
    waiting.answer()
    assert answered == ["a1"]
    ask(waiting, answered, 2, "b1")
    waiting.answer()
    assert answered == ["a1", "a2"]
    assert waiting
    waiting.answer()
    assert answered == ["a1", "a2", "b1"]
    assert not waiting


def test_a_crowd_of_questions_holds_up_another_client_for_one_of_them(
    answered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "ANSWERING_S", 0.0)
    waiting = Questions()
    ask(waiting, answered, 1, *(f"a{number}" for number in range(64)))
    waiting.answer()
    ask(waiting, answered, 2, "ping")
    waiting.answer()
    waiting.answer()
    assert answered == ["a0", "a1", "ping"]


def test_what_is_asked_while_others_are_answered_waits_for_the_next_turn(answered: list[str]) -> None:
    waiting = Questions()
    waiting.add(1, lambda: ask(waiting, answered, OWN, "after the commit"))
    ask(waiting, answered, 2, "b1", "b2")
    waiting.answer()
    assert answered == ["b1", "b2"]
    assert waiting
    waiting.answer()
    assert answered[2:] == ["after the commit"]
