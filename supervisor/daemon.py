"""The daemon: the one place that knows all rooms. Builds them, runs the turn, performs decisions.

One turn: wait → all that came in → engine → one commit → perform, replies last → queries.
No rule of jobs stands here; those are the engine's. Called by `__main__`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pwd
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from supervisor import __version__, api, config
from supervisor.config import Config
from supervisor.control import Control, ControlError, Request
from supervisor.core import commands, queries, views
from supervisor.core.engine import Engine
from supervisor.core.events import (
    Booted,
    Configured,
    Decision,
    DeleteAttempt,
    DeleteHold,
    Dropped,
    Event,
    Journal,
    Launch,
    Leave,
    Now,
    Refusal,
    Reply,
    Requested,
    SaveAttempt,
    SaveHold,
    SaveNode,
    SaveRun,
    Signal,
    TimeReached,
)
from supervisor.core.model import ACTIVE, Definitions, Job, JournalEntry
from supervisor.executor import Executor
from supervisor.logs import LogFollowers, tail
from supervisor.loop import Loop
from supervisor.store import Store, StoreError

log = logging.getLogger("jobd")

#: Journal entries sent to one subscriber in one step when it begins in the past.
BACKLOG_STEP = 500
#: Kinds of journal entries that go to the daemon's own log; the rest is in `jobctl events`.
_LOGGED = {"failed", "lost", "retrying", "start_refused", "command", "refused", "held", "released", "report"}
_NOBODY = 0  # the token of requests that expect no reply


class HeldError(Exception):
    """Another jobd holds the state directory; nothing was touched."""


class SetUpError(Exception):
    """The daemon cannot start; the message says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things are. All absolute."""

    state_dir: Path
    socket: str
    pid_file: Path | None = None


class Daemon:
    """Holds the state directory from the start of `run` to its end."""

    def __init__(self, configuration: Config, paths: Paths) -> None:
        """Take the lock and open everything. Raises HeldError, SetUpError."""
        self._config = configuration
        self._paths = paths
        self._started_at = time.time()
        self._lock = _hold(paths.state_dir)
        try:
            self._store = Store(paths.state_dir / "jobd.db")
        except StoreError as error:
            raise SetUpError(str(error)) from error
        self._loop = Loop()
        self._inbox: list[Event] = []
        self._queries: list[Callable[[], None]] = []
        self._subscribers: dict[int, int] = {}  # token -> id of the last entry sent
        self._following: dict[int, int] = {}  # token -> attempt id whose log is followed
        self._repeatable: dict[int, str] = {}  # token -> request id, until answered
        self._same_request: dict[str, list[int]] = {}  # request id -> tokens that want the answer too
        self._leaving = False
        self._executor = Executor(paths.state_dir, Path(paths.socket), self._loop, self._inbox.append)
        self._followers = LogFollowers(self._loop)
        self._engine = Engine(configuration.definitions, self._store.has_run)

    def run(self) -> None:
        """Serve until told to leave. Raises SetUpError if the socket cannot be opened."""
        self._executor.open()
        self._engine.restore(self._store.load(), _now())
        self._inbox += [Configured(self._config.definitions), Booted()]
        self._executor.recover(self._engine.under_way())
        mode = self._config.daemon.socket_mode
        try:
            self._control = Control(
                self._paths.socket, self._loop, self._on_request, self._on_gone, 0o660 if mode is None else mode
            )
        except ControlError as error:
            raise SetUpError(str(error)) from error
        self._loop.on_signal(signal.SIGTERM, lambda: self._on_stop_signal("SIGTERM", commands.Shutdown()))
        self._loop.on_signal(signal.SIGINT, lambda: self._on_stop_signal("SIGINT", commands.Shutdown(stop_jobs=True)))
        self._loop.on_signal(signal.SIGHUP, self._on_hangup)
        with _pid_file(self._paths.pid_file):
            log.info("jobd %s serves %s, state in %s", __version__, self._paths.socket, self._paths.state_dir)
            self._turn()
            while not self._leaving:
                self._loop.turn(self._engine.deadline())
                self._turn()
            log.info("jobd leaves; running jobs go on")
        self._control.close()
        self._executor.close()
        self._store.close()

    # ---- the turn ------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Everything that came in since the last turn: decide, commit, perform, answer."""
        now = _now()
        deadline = self._engine.deadline()
        if deadline is not None and deadline <= now.mono:
            self._inbox.append(TimeReached())
        if self._inbox:
            events, self._inbox[:] = list(self._inbox), []
            decisions = [decision for event in events for decision in self._engine.handle(event, now)]
            self._commit(decisions, now)
            self._perform(decisions)
            self._publish(decisions)
            self._engine.forget_finished()
        queries, self._queries = self._queries, []
        for query in queries:
            query()

    def _commit(self, decisions: list[Decision], now: Now) -> None:
        saves = [decision for decision in decisions if isinstance(decision, _SAVES)]
        answers = [
            (self._repeatable[decision.token], now.wall, _encode_answer(decision.result))
            for decision in decisions
            if isinstance(decision, Reply) and decision.token in self._repeatable
        ]
        if saves or answers:
            self._store.commit(saves, answers)

    def _perform(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Launch():
                    self._executor.start(decision)
                case Signal():
                    self._executor.signal(decision)
                case SaveAttempt(attempt):
                    if attempt.state not in ACTIVE:
                        self._executor.forget(attempt.id)
                        self._end_following(attempt.id, attempt.state)
                case DeleteAttempt(attempt_id):
                    self._executor.forget(attempt_id)
                case Leave():
                    self._leaving = True
        for decision in decisions:
            if isinstance(decision, Reply) and decision.token != _NOBODY:
                self._answer(decision.token, decision.result)

    def _publish(self, decisions: list[Decision]) -> None:
        entries = [decision.entry for decision in decisions if isinstance(decision, Journal)]
        for entry in entries:
            if entry.kind in _LOGGED or entry.kind.startswith("run_"):
                _log_entry(entry)
        for token in list(self._subscribers):
            self._catch_up(token, entries)

    # ---- requests ------------------------------------------------------------------------------

    def _on_request(self, request: Request) -> None:
        try:
            asked = api.decode(request.method, request.params)
        except api.ParamsError as error:
            self._control.refuse(request.token, error.code, error.kind, str(error), error.hint)
            return
        if isinstance(asked, api.Query):
            self._queries.append(lambda: self._query(request.token, asked, _who(request.uid)))
            return
        if request.request_id is not None and self._is_repeat(request.token, f"{request.uid}:{request.request_id}"):
            return
        run = getattr(asked, "run", None)
        if run is not None:
            self._bring_in(run)
        self._inbox.append(Requested(request.token, asked, _who(request.uid)))

    def _is_repeat(self, token: int, request_id: str) -> bool:
        """Whether the answer to this request id is known or under way; then it is all that this request gets."""
        known = self._store.answer(request_id)
        if known is not None:
            self._answer(token, _decode_answer(known))
            return True
        if request_id in self._same_request:
            self._same_request[request_id].append(token)
            return True
        self._repeatable[token] = request_id
        self._same_request[request_id] = []
        return False

    def _answer(self, token: int, result: dict[str, Any] | Refusal) -> None:
        request_id = self._repeatable.pop(token, None)
        for each in (token, *self._same_request.pop(request_id or "", ())):
            if isinstance(result, Refusal):
                self._control.refuse(each, result.code, result.kind, result.message, result.hint)
            else:
                self._control.reply(each, msgspec.json.encode(result))

    def _on_gone(self, token: int) -> None:
        self._inbox.append(Dropped(token))
        self._subscribers.pop(token, None)
        if self._following.pop(token, None) is not None:
            self._followers.drop(token)

    def _bring_in(self, run: str) -> None:
        """Have an older run in memory, for a command or a query about it."""
        if self._engine.registry.by_name(run) is None:
            self._engine.restore(self._store.load_run(run), _now())

    # ---- queries: answered after the commit of the turn ------------------------------------------

    def _query(self, token: int, query: api.Query, by: str) -> None:
        try:
            self._look_up(token, query, by)
        except Exception:
            # A question changes nothing, so a bug in answering it need not end the daemon.
            log.exception("bug: %s could not be answered", query)
            self._control.refuse(token, -32603, "internal_error", "jobd could not answer", "its log says why")

    def _look_up(self, token: int, query: api.Query, by: str) -> None:
        match query:
            case api.Status():
                answer = self._status(query)
            case api.History():
                answer = self._history(query)
            case api.Events():
                entries = self._store.events(query.since, query.limit)
                answer = {"events": [views.event_view(entry) for entry in entries]}
            case api.Ping():
                answer = {"pid": os.getpid(), "version": __version__}
            case api.Version():
                answer = {"version": __version__}
            case api.Reload():
                self._reload(token, query.dry_run, by)
                return
            case api.Subscribe():
                self._subscribe(token, query.since)
                return
            case api.Logs():
                self._logs(token, query)
                return
        self._answer(token, answer)

    def _status(self, query: api.Status) -> dict[str, Any] | Refusal:
        if query.run is not None:
            self._bring_in(query.run)
        shown = queries.status(self._engine, query.names, query.run, _now())
        self._engine.forget_finished()
        if isinstance(shown, Refusal):
            return shown
        daemon = {
            "pid": os.getpid(),
            "version": __version__,
            "started_at": views.timestamp(self._started_at),
            "config": str(self._config.file),
            "state": "leaving" if self._engine.leaving else "running",
        }
        return {"daemon": daemon, **shown}

    def _history(self, query: api.History) -> dict[str, Any] | Refusal:
        unknown = queries.refuse_unknown(self._engine, query.names)
        since = 0.0 if query.since_s is None else time.time() - query.since_s
        found = self._store.history(query.names, query.limit, since)
        if unknown is not None and not found:
            return unknown
        return {"attempts": [queries.attempt_view(attempt, run, dag) for attempt, run, dag in found]}

    def _subscribe(self, token: int, since: int | None) -> None:
        last = self._engine.last_event_id
        since = last if since is None else min(max(since, 0), last)
        self._control.reply(token, {"since": since}, more=True)
        self._subscribers[token] = since
        self._catch_up(token, [])

    def _catch_up(self, token: int, entries: list[JournalEntry]) -> None:
        """Send what the subscriber has not seen: `entries`, or in steps from the store if it is further behind."""
        sent = self._subscribers.get(token)
        if sent is None or sent >= self._engine.last_event_id:
            return
        if not entries or entries[0].id > sent + 1:
            entries = self._store.events(sent, BACKLOG_STEP)
        for entry in entries:
            if entry.id > sent and token in self._subscribers:
                self._subscribers[token] = entry.id
                self._control.notify(token, "event", views.event_view(entry))
        if token in self._subscribers and self._subscribers[token] < self._engine.last_event_id:
            self._loop.call_at(0.0, lambda: self._catch_up(token, []))

    def _logs(self, token: int, query: api.Logs) -> None:
        found = self._store.attempt(query.job, query.run, query.attempt)
        if found is None:
            unknown = queries.refuse_unknown(self._engine, (query.job,))
            hint = f"jobctl history {query.job} lists its attempts"
            self._answer(token, unknown or Refusal(1, "refused", f"{query.job} has no such attempt", hint))
            return
        attempt, run, _dag = found
        path = self._paths.state_dir / "logs" / attempt.log
        text, size = tail(path, min(query.lines, api.MAX_LOG_LINES))
        follow = query.follow and attempt.state in ACTIVE
        answer = {"job": attempt.job, "run": run, "attempt": attempt.number, "state": attempt.state, "text": text}
        self._control.reply(token, {**answer, "size": size}, more=query.follow)
        if follow:
            self._following[token] = attempt.id
            self._followers.follow(token, path, size, lambda chunk: self._control.notify(token, "log", {"text": chunk}))
        elif query.follow:
            self._end_stream(token, attempt.state)

    def _end_following(self, attempt_id: int, state: str) -> None:
        for token in [token for token, followed in self._following.items() if followed == attempt_id]:
            del self._following[token]
            self._followers.stop(token)
            self._end_stream(token, state)

    def _end_stream(self, token: int, state: str) -> None:
        self._control.notify(token, "log_end", {"state": state})
        self._control.end(token)

    # ---- configuration and signals ---------------------------------------------------------------

    def _reload(self, token: int, dry_run: bool, by: str) -> None:
        """Read the configuration again; all of it takes effect, or nothing."""
        checked = config.check(self._config.file)
        answer = _difference(self._config.definitions, checked)
        if checked.config is not None and not dry_run:
            self._config = checked.config
            self._inbox.append(Configured(checked.config.definitions, by))
        for problem in checked.errors:
            log.error("reload: %s", problem)
        if token != _NOBODY:
            self._queries.append(lambda: self._answer(token, answer))  # after the change has been committed
            self._loop.call_at(0.0, lambda: None)

    def _on_hangup(self) -> None:
        self._queries.append(lambda: self._reload(_NOBODY, False, "SIGHUP"))

    def _on_stop_signal(self, name: str, command: commands.Shutdown) -> None:
        self._inbox.append(Requested(_NOBODY, command, name))


_SAVES = (SaveRun, SaveNode, SaveAttempt, DeleteAttempt, SaveHold, DeleteHold, Journal)


def _now() -> Now:
    return Now(time.time(), time.monotonic())


@lru_cache(maxsize=1024)
def _who(uid: int) -> str:
    """A caller's name for the journal. Looked up once: the answer may come from a network."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"uid {uid}"


def _log_entry(entry: JournalEntry) -> None:
    level = logging.WARNING if entry.kind in ("failed", "lost", "start_refused", "run_failed") else logging.INFO
    subject = " ".join(part for part in (entry.run, entry.job) if part)
    told = ": ".join(part for part in (subject, entry.kind, entry.text) if part)
    log.log(level, "%s%s", told, f" (by {entry.by})" if entry.by else "")


def _encode_answer(result: dict[str, Any] | Refusal) -> bytes:
    return msgspec.json.encode({"refusal": result} if isinstance(result, Refusal) else {"result": result})


def _decode_answer(body: bytes) -> dict[str, Any] | Refusal:
    answer = msgspec.json.decode(body)
    return msgspec.convert(answer["refusal"], Refusal) if "refusal" in answer else answer["result"]


def _difference(old: Definitions, checked: config.Checked) -> dict[str, Any]:
    """CONTRACT 5's `reload`: names of jobs that come, go, change and stay, or the errors."""
    errors = [asdict(problem) for problem in checked.errors]
    if checked.config is None:
        return {"added": [], "removed": [], "changed": [], "unchanged": [], "errors": errors}
    before, after = _jobs(old), _jobs(checked.config.definitions)
    common = [name for name in after if name in before]
    return {
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
        "changed": [name for name in common if before[name] != after[name]],
        "unchanged": [name for name in common if before[name] == after[name]],
        "errors": errors,
    }


def _jobs(definitions: Definitions) -> dict[str, Job]:
    return {job.name: job for dag in definitions.dags.values() for job in dag.jobs}


def _hold(state_dir: Path) -> int:
    """Lock the state directory, made if missing. The lock lasts as long as the process."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    except OSError as error:
        raise SetUpError(f"{state_dir}: cannot be used as the state directory: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise HeldError(f"{state_dir}: another jobd holds this state directory; stop it first") from None
    return lock


@contextlib.contextmanager
def _pid_file(path: Path | None) -> Any:
    if path is not None:
        path.write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        if path is not None:
            path.unlink(missing_ok=True)
