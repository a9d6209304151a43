"""Followers of logs: all of it comes, in order, and no faster than they have room for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor import logs
from supervisor.logs import CHUNK_BYTES, LogFollowers
from supervisor.loop import Loop

DEADLINE_S = 10.0


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Reader:
    """Follows a log; what it was sent stands in `pieces`. Takes so many of them, until it is given more room."""

    def __init__(self, followers: LogFollowers, token: int, path: Path, room: float = float("inf")) -> None:
        self.pieces: list[str] = []
        self.room = room
        self.was_ended = False
        self.asked = 0
        self._followers, self._token = followers, token
        followers.follow(token, path, 0, self.pieces.append, self._has_room)

    def _has_room(self) -> bool:
        self.asked += 1
        return len(self.pieces) < self.room

    def give_room(self, pieces: int) -> None:
        self.room += pieces
        self._followers.go_on(self._token)

    def finish(self) -> None:
        self._followers.finish(self._token, self._end)

    def _end(self) -> None:
        self.was_ended = True

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def turn_until(loop: Loop, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the loop did not get there"
        loop.turn(time.monotonic() + 0.01)


def test_a_follower_gets_what_is_there_and_what_comes_and_then_the_end(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("first\n")
    reader = Reader(LogFollowers(loop), 1, path)
    turn_until(loop, lambda: reader.text == "first\n")
    with path.open("a") as log:
        log.write("second\n")
    turn_until(loop, lambda: reader.text == "first\nsecond\n")
    with path.open("ab") as log:
        log.write("half é".encode()[:-1])
    reader.finish()
    turn_until(loop, lambda: reader.was_ended)
    assert reader.text == "first\nsecond\nhalf \ufffd"


def test_a_long_log_comes_whole_and_one_chunk_a_turn(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = "é" * (5 * CHUNK_BYTES)
    path.write_text("x" + text)  # so that every chunk ends within a character
    reader = Reader(LogFollowers(loop), 1, path)
    reader.finish()
    turns = 0
    while not reader.was_ended:
        loop.turn(time.monotonic() + DEADLINE_S)
        turns += 1
        assert len(reader.pieces) <= turns
    assert reader.text == "x" + text
    assert all(len(piece.encode()) <= CHUNK_BYTES + 2 for piece in reader.pieces)


def test_without_room_nothing_is_sent_and_the_end_waits_for_the_rest(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("x" * (3 * CHUNK_BYTES))
    reader = Reader(LogFollowers(loop), 1, path, room=1)
    other = Reader(reader._followers, 2, path)
    reader.finish()
    other.finish()
    turn_until(loop, lambda: other.was_ended)
    asked = reader.asked
    for _ in range(3):
        loop.turn(time.monotonic())
    assert reader.asked == asked  # it is not polled
    assert (len(reader.pieces), reader.was_ended) == (1, False)
    reader.give_room(1)
    turn_until(loop, lambda: len(reader.pieces) == 2)
    assert not reader.was_ended
    reader.give_room(2)
    turn_until(loop, lambda: reader.was_ended)
    assert reader.text == other.text == path.read_text()


def test_who_is_gone_is_read_for_no_more(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("x" * (3 * CHUNK_BYTES))
    followers = LogFollowers(loop)
    first = Reader(followers, 2, path)
    first.finish()
    turn_until(loop, lambda: first.was_ended)
    before = descriptors()
    reader = Reader(followers, 1, path)
    reader.finish()
    loop.turn(time.monotonic())
    followers.drop(1)
    followers.drop(1)
    for _ in range(5):
        loop.turn(time.monotonic())
    assert len(reader.pieces) <= 1
    assert not reader.was_ended
    assert descriptors() == before


def test_when_time_is_up_one_follower_is_served_and_then_the_next(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SENDING_S", 0.0)
    path = tmp_path / "log"
    path.write_text("x" * (4 * CHUNK_BYTES))
    followers = LogFollowers(loop)
    readers = [Reader(followers, token, path) for token in range(3)]
    for reader in readers:
        reader.finish()
    while not all(reader.was_ended for reader in readers):
        before = sum(len(reader.pieces) for reader in readers)
        loop.turn(time.monotonic() + DEADLINE_S)
        counts = [len(reader.pieces) for reader in readers]
        assert sum(counts) <= before + 1
        assert max(counts) - min(counts) <= 1


def test_a_log_that_is_removed_is_read_to_its_end(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("")
    reader = Reader(LogFollowers(loop), 1, path)
    with path.open("a") as log:
        path.unlink()
        log.write("after all\n")
    reader.finish()
    turn_until(loop, lambda: reader.was_ended)
    assert reader.text == "after all\n"
