"""The live board: what `status` shows, kept true by the stream of events.

Owns the terminal while it is up, and gives it back as it was. Asks for the status when an event says
that something changed, never on a clock; the one tick a second only moves the durations of what runs.
Called by `ctl.commands` for `watch`, and for `--wait` where a person looks.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from types import FrameType
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ctl import render, words
from ctl.client import Client
from ctl.failure import Failure
from ctl.session import Session
from supervisor import protocol

#: However many events come, the status is not asked for more often.
MIN_REFRESH_S = 0.2
#: The tick of the durations, and of trying to reach a daemon that is away.
TICK_S = 1.0
#: The board gives up on an answer sooner than other commands do, so that q and Ctrl-C stay at hand.
ANSWER_TIMEOUT_S = 5.0


class Board:
    """One showing of these names (none = every dag)."""

    def __init__(self, session: Session, names: list[str], run: str | None) -> None:
        self._session = session
        self._params = {"names": names} | ({"run": run} if run else {})
        self._client: Client | None = None
        self._result: dict[str, Any] = {"runs": [], "jobs": []}
        self._fetched_at = 0.0
        self._stale = False  # an event came since
        self._problem = ""
        self._hint = ""

    def show(self) -> None:
        """On a screen of its own until q or Ctrl-C."""
        self._hint = "q quits"
        self._connect()  # a wrong name is told before the screen is taken
        with contextlib.suppress(KeyboardInterrupt), _terminal() as (keys, wakeup), self._live(screen=True) as live:
            while True:
                ready = self._wait(live, [keys, wakeup], None)
                if keys in ready and os.read(keys, 64).lower().startswith((b"q", b"\x03", b"\x04")):
                    break
                if wakeup in ready:
                    os.read(wakeup, 64)

    def show_until(self, method: str, params: dict[str, Any], timeout_s: float | None) -> dict[str, Any]:
        """Below the prompt, until the daemon answers this call; returns its answer."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        waiting = self._session.connect()
        call_id = waiting.send(method, {key: value for key, value in params.items() if value is not None})
        self._connect()
        with _terminal(keys=False) as (_keys, wakeup), self._live(screen=False) as live:
            while deadline is None or time.monotonic() < deadline:
                ready = self._wait(live, [waiting.fileno(), wakeup], deadline)
                if waiting.fileno() in ready:
                    break
                if wakeup in ready:
                    os.read(wakeup, 64)
        return waiting.receive(call_id, 0.0 if deadline else None)

    # -- what is shown ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def _live(self, *, screen: bool) -> Iterator[Live]:
        console = render.make_console(self._session.out)
        live = Live(self._picture(), console=console, screen=screen, auto_refresh=False, transient=True)
        try:  # not Live's own `with`: a signal in the midst of its start would leave the screen taken
            live.start(refresh=True)
            yield live
        finally:
            live.stop()

    def _picture(self) -> RenderableType:
        lines = shutil.get_terminal_size().lines - 2
        age_s = time.monotonic() - self._fetched_at
        picture = render.board(self._result, self._session.out, age_s, lines)
        problem = self._problem or words.daemon_news(self._result)
        foot = Text(words.clean(problem), style="bold red") if problem else Text(self._hint, style="dim")
        return Group(picture, foot) if foot.plain else picture

    # -- what is waited for ----------------------------------------------------------------------

    def _wait(self, live: Live, others: list[int], deadline: float | None) -> set[int]:
        """Wait for news, show them; returns which of the others are readable."""
        poll = select.poll()
        for fd in others:
            poll.register(fd, select.POLLIN)
        if self._client:
            poll.register(self._client.fileno(), select.POLLIN)
        wait_s = self._patience()
        if deadline is not None:
            left_s = max(0.0, deadline - time.monotonic())
            wait_s = left_s if wait_s is None else min(wait_s, left_s)
        ready = {fd for fd, _mask in poll.poll(None if wait_s is None else wait_s * 1000)}
        self._hear_news()
        live.update(self._picture(), refresh=True)
        return ready

    def _patience(self) -> float | None:
        """How long to wait if nothing happens; None = for ever."""
        if self._stale:
            return max(0.0, self._fetched_at + MIN_REFRESH_S - time.monotonic())
        runs = any(record["state"] in words.ACTIVE for record in (*self._result["jobs"], *self._result["runs"]))
        return TICK_S if runs or self._client is None else None

    def _hear_news(self) -> None:
        try:
            if self._client is None:
                self._connect()
            while self._client and (news := self._client.notification(0.0)):
                self._stale = True
                if news[0] == "lagged":
                    self._connect()
            if self._stale and time.monotonic() >= self._fetched_at + MIN_REFRESH_S:
                self._fetch()
        except Failure as failure:
            if failure.exit_code != protocol.EXIT_UNREACHABLE:
                raise
            self._disconnect()
            self._problem = "jobd does not answer; trying again"

    def _connect(self) -> None:
        self._disconnect()
        client = self._session.connect()
        client.call("subscribe", {}, ANSWER_TIMEOUT_S)
        self._client = client
        self._fetch()

    def _disconnect(self) -> None:
        if self._client:
            self._client.close()
        self._client = None

    def _fetch(self) -> None:
        assert self._client is not None
        self._result = self._client.call("status", self._params, ANSWER_TIMEOUT_S)
        self._fetched_at = time.monotonic()
        self._stale = False
        self._problem = ""


@contextlib.contextmanager
def _terminal(*, keys: bool = True) -> Iterator[tuple[int, int]]:
    """Single keys on a descriptor, a changed window size on another; all as it was afterwards, TERM included."""
    wakeup_r, wakeup_w = os.pipe()
    for end in (wakeup_r, wakeup_w):
        os.set_blocking(end, False)
    stdin = sys.stdin.fileno() if keys and sys.stdin and sys.stdin.isatty() else -1
    before = termios.tcgetattr(stdin) if stdin >= 0 else None
    old_resize = signal.signal(signal.SIGWINCH, lambda _number, _frame: None)
    old_term = signal.signal(signal.SIGTERM, _leave)
    signal.set_wakeup_fd(wakeup_w, warn_on_full_buffer=False)
    try:
        if stdin >= 0:
            tty.setcbreak(stdin)
        yield (stdin if stdin >= 0 else wakeup_r), wakeup_r
    finally:
        if before:
            termios.tcsetattr(stdin, termios.TCSADRAIN, before)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGWINCH, old_resize)
        signal.signal(signal.SIGTERM, old_term)
        os.close(wakeup_r)
        os.close(wakeup_w)


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
