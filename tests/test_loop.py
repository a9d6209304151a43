"""The loop: readiness, timers and signals each get their turn."""

from __future__ import annotations

import os
import signal
import time

from supervisor.loop import Loop


def test_a_timer_that_sets_itself_anew_does_not_keep_the_loop_from_descriptors() -> None:
    loop, seen = Loop(), []
    reader, writer = os.pipe()

    def again() -> None:
        seen.append("timer")
        loop.call_at(0.0, again)

    loop.call_at(0.0, again)
    loop.watch(reader, lambda: seen.append(os.read(reader, 1).decode()))
    os.write(writer, b"x")
    loop.turn()
    loop.turn()
    assert seen == ["x", "timer", "timer"]
    loop.close()
    os.close(reader)
    os.close(writer)


def test_a_cancelled_timer_does_not_fire_and_a_deadline_ends_the_wait() -> None:
    loop, seen = Loop(), []
    loop.call_at(0.0, lambda: seen.append("cancelled")).cancel()
    loop.turn(time.monotonic())
    assert seen == []
    loop.close()


def test_a_signal_wakes_the_loop_and_is_told_once() -> None:
    loop, seen = Loop(), []
    before = signal.getsignal(signal.SIGUSR1)
    loop.on_signal(signal.SIGUSR1, lambda: seen.append("USR1"))
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.turn()
    assert seen == ["USR1"]
    loop.close()
    signal.signal(signal.SIGUSR1, before)
