"""The turn: wait → all that came in → engine → one commit → perform, replies last → questions."""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from supervisor import __version__, api, config, libc, process_tree
from supervisor.config import Config
from supervisor.control import Control, ControlError, Request
from supervisor.core import commands, views
from supervisor.core.engine import Engine
from supervisor.core.events import (
    Booted,
    Configured,
    Decision,
    DeleteAttempt,
    Dropped,
    Event,
    Journal,
    Launch,
    Leave,
    Now,
    Refusal,
    Reply,
    Requested,
    Save,
    SaveAttempt,
    Signal,
    TimeReached,
)
from supervisor.core.model import ACTIVE, Definitions, Job, JournalEntry
from supervisor.daemon.access import Access
from supervisor.daemon.answers import Answers
from supervisor.daemon.desk import NOBODY, Answer, Desk
from supervisor.daemon.questions import OWN, Questions
from supervisor.daemon.state_dir import UnsafeError, hold, pid_file
from supervisor.daemon.streams import Streams
from supervisor.executor import Executor
from supervisor.loop import Loop
from supervisor.store import StorageError, Store, StoreError

log = logging.getLogger("jobd")

#: A commit that failed is tried again after this time.
COMMIT_RETRY_S = 1.0
#: Jobs that are named in one line.
MAX_NAMES = 10
#: With roles the socket is open to everyone: a stranger is told what he lacks.
DEFAULT_SOCKET_MODE, SOCKET_MODE_WITH_ROLES = 0o660, 0o666
#: Kinds of journal entries that go to the daemon's own log, besides those of runs; `jobctl events` has all.
_LOGGED = {"failed", "lost", "retrying", "start_refused", "command", "refused", "held", "released", "report"}
_LOGGED_AS_WARNING = {"failed", "lost", "start_refused", "run_failed"}


class SetUpError(Exception):
    """The daemon cannot start; the message says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things are. All absolute."""

    state_dir: Path
    socket: str
    pid_file: Path | None = None


class Daemon:
    """Made: it holds the state directory and has opened everything. `run` serves until it is told to leave."""

    def __init__(self, configuration: Config, paths: Paths) -> None:
        """Raises HeldError, SetUpError."""
        self._config = configuration
        self._paths = paths
        self._started_at = time.time()
        self._leaving = False
        self._inbox: list[Event] = []
        self._questions = Questions()
        self._decided: list[Decision] = []  # and not committed
        self._trouble = ""  # why it cannot be committed
        self._retry_at = 0.0  # monotonic; not before this is it tried again
        try:
            self._lock = hold(paths.state_dir)
            self._store = Store(paths.state_dir / "jobd.db", process_tree.boot_id())
            for file in paths.state_dir.glob("jobd.db*"):
                file.chmod(0o640)  # it has what jobs are given in `env`; SQLite makes it readable for all
        except (StoreError, UnsafeError) as error:
            raise SetUpError(str(error)) from error
        except OSError as error:
            raise SetUpError(f"{paths.state_dir}: cannot be the state directory: {error.strerror}") from error
        self._loop = Loop()
        self._engine = Engine(configuration.definitions, self._store.has_run)
        self._executor = Executor(paths.state_dir, Path(paths.socket), self._loop, self._inbox.append)
        self._recover()
        self._inbox += [Configured(configuration.definitions), Booted()]
        self._access = Access(self._engine, self._bring_in)
        self._access.configure(configuration.access, _users(configuration.definitions, self._engine))
        self._desk = Desk(self._access, self._store.answer, self._on_command, self._on_query, self._inbox.append)
        self._control = self._open_socket()
        self._streams = Streams(self._control, self._store, self._loop, self._engine.last_event_id)
        logs = paths.state_dir / "logs"
        hindrance = self._executor.hindrance
        self._answers = Answers(self._engine, self._store, self._streams, logs, self._bring_in, hindrance)

    def _recover(self) -> None:
        """Take up what the last daemon left: its decisions, and the attempts under way."""
        try:
            self._engine.restore(self._store.load(), _now())
        except StoreError as error:
            raise SetUpError(str(error)) from error
        if unheard_of := self._store.unheard_of(self._executor.recorded()):
            self._refuse_lost_commits(unheard_of[0])
        libc.become_subreaper(b"jobd")
        self._loop.on_signal(signal.SIGCHLD, self._executor.reap)
        self._executor.open()
        self._executor.recover(self._store.boots(self._engine.under_way()))
        for attempt_id in self._store.settled(self._executor.recorded()):
            self._executor.forget(attempt_id)  # it was committed, and then that daemon died

    def _refuse_lost_commits(self, attempt_id: int) -> None:
        """An attempt is committed before it gets a record. What is not known to run would be started twice."""
        record, database = self._paths.state_dir / "attempts" / f"{attempt_id}.json", self._store.path
        problem = f"{record} tells of an attempt that {database} does not know: its latest commits are missing"
        remedy = f"put back {database.name} with its -wal, or, once that job has ended, remove the record"
        raise SetUpError(f"{problem}, and the job may still run: {remedy}")

    def _open_socket(self) -> Control:
        mode = self._config.daemon.socket_mode
        if mode is None:
            mode = SOCKET_MODE_WITH_ROLES if self._access.has_roles else DEFAULT_SOCKET_MODE
        strangers = self._access.is_stranger
        try:
            control = Control(self._paths.socket, self._loop, self._desk.on_request, self._on_gone, mode, strangers)
        except ControlError as error:
            raise SetUpError(str(error)) from error
        self._desk.control = control
        return control

    def run(self) -> None:
        """Serve; returns when it may exit. Running jobs go on."""
        self._loop.on_signal(signal.SIGTERM, partial(self._on_stop_signal, "SIGTERM", commands.Shutdown()))
        self._loop.on_signal(signal.SIGINT, partial(self._on_stop_signal, "SIGINT", commands.Shutdown(stop_jobs=True)))
        self._loop.on_signal(signal.SIGHUP, lambda: self._reload(NOBODY, False, "SIGHUP"))
        with pid_file(self._paths.pid_file):
            log.info("jobd %s serves %s, state in %s", __version__, self._paths.socket, self._paths.state_dir)
            self._turn()
            while not self._leaving:
                self._loop.turn(self._next_turn_at())
                self._turn()
            log.info("jobd leaves; running jobs go on")
        self._control.close()
        self._executor.close()
        self._store.close()

    # ---- the turn ------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Everything that came in since the last turn: decide, commit, perform, answer."""
        now = _now()
        if not self._trouble:
            self._ask_engine(now)
        if self._decided and now.mono >= self._retry_at and self._commit(now):
            decisions, self._decided = self._decided, []
            self._carry_out(decisions)
            self._engine.forget_finished()
        self._questions.answer()

    def _ask_engine(self, now: Now) -> None:
        deadline = self._engine.deadline()
        if deadline is not None and deadline <= now.mono:
            self._inbox.append(TimeReached())
        # The list itself stays: the executor appends to it.
        events, self._inbox[:] = list(self._inbox), []
        self._decided += [decision for event in events for decision in self._engine.handle(event, now)]

    def _next_turn_at(self) -> float | None:
        """Monotonic time at which a turn is wanted, should nothing happen before."""
        if self._questions:
            return 0.0
        if self._trouble:
            return self._retry_at
        return 0.0 if self._inbox else self._engine.deadline()

    def _commit(self, now: Now) -> bool:
        """Nothing happens, and nobody is told anything, before it is on disk. False: it cannot be written for now.

        Until it can, the engine is asked nothing more: nothing starts, and what ends is kept by the shims.
        """
        saves = [decision for decision in self._decided if isinstance(decision, Save)]
        replies = [decision for decision in self._decided if isinstance(decision, Reply)]
        answers = [(request_id, now.wall, body) for request_id, body in self._desk.answers_to_keep(replies)]
        try:
            if saves or answers:
                self._store.commit(saves, answers)
        except StorageError as error:
            if not self._trouble:
                log.error("%s; nothing is started until it can be written again", error)
            self._trouble = str(error)
            if any(isinstance(decision, Leave) for decision in self._decided):
                self._leaving = True  # what was decided and not written has not happened
            self._retry_at = now.mono + COMMIT_RETRY_S
            return False
        if self._trouble:
            log.warning("the state can be written again")
            self._trouble, self._retry_at = "", 0.0
        return True

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self._perform(decision)
        for decision in decisions:
            if isinstance(decision, Reply):
                self._desk.answer(decision.token, decision.result)
        entries = [decision.entry for decision in decisions if isinstance(decision, Journal)]
        if entries:
            self._streams.publish(entries)
            for entry in entries:
                _log_entry(entry)

    def _perform(self, decision: Decision) -> None:
        match decision:
            case Launch():
                self._executor.start(decision)
            case Signal():
                self._executor.signal(decision)
            case SaveAttempt(attempt) if attempt.state not in ACTIVE:
                self._executor.forget(attempt.id)
                self._streams.attempt_ended(attempt.id, attempt.state)
            case DeleteAttempt(attempt_id):
                self._executor.forget(attempt_id)
            case Leave():
                self._leaving = True

    # ---- what comes in -------------------------------------------------------------------------

    def _on_command(self, requested: Requested) -> None:
        if self._trouble and isinstance(requested.command, commands.Shutdown):
            self._leaving = True  # what was decided and not written has not happened
        if self._trouble:
            hint = "make room there; running jobs go on, and what they come to is kept"
            self._desk.answer(requested.token, Refusal(1, "storage", self._trouble, hint))
            return
        run = getattr(requested.command, "run", None)
        if run is not None:
            self._bring_in(run)
        self._inbox.append(requested)

    def _on_query(self, request: Request, query: api.Query, by: str) -> None:
        def answer() -> None:
            if isinstance(query, api.Reload):
                self._reload(request.token, query.dry_run, by)
            else:
                look_up = partial(self._answers.look_up, request.token, query, self._view(), _now())
                self._desk.answer_safely(request.token, look_up)

        self._questions.add(request.connection, answer)

    def _view(self) -> dict[str, Any]:
        """What `status` says of the daemon itself."""
        return {
            "pid": os.getpid(),
            "version": __version__,
            "started_at": views.timestamp(self._started_at),
            "config": str(self._config.file),
            "state": self._trouble or (self._leaving_when() if self._engine.leaving else "running"),
        }

    def _leaving_when(self) -> str:
        """What a shutdown waits for."""
        names = sorted({launch.job.name for launch in self._engine.under_way().values()})
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        return f"leaving: waits for {', '.join(names[:MAX_NAMES])}{more}" if names else "leaving"

    def _on_gone(self, token: int) -> None:
        self._inbox.append(Dropped(token))
        self._streams.gone(token)

    def _bring_in(self, run: str) -> None:
        """Have an older run in memory, for a command or a question about it."""
        if self._engine.registry.by_name(run) is None:
            self._engine.restore(self._store.load_run(run), _now())

    def _on_stop_signal(self, name: str, command: commands.Shutdown) -> None:
        self._on_command(Requested(NOBODY, command, name))

    def _reload(self, token: int, dry_run: bool, by: str) -> None:
        """Read the configuration again; all of it takes effect, or nothing."""
        checked = config.check(self._config.file)
        answer = _difference(self._config.definitions, checked)
        for problem in checked.errors:
            log.error("reload: %s", problem)
        if checked.config is None or dry_run:
            self._desk.answer(token, answer)
            return
        self._config = checked.config
        self._inbox.append(Configured(checked.config.definitions, by))
        self._change_access()
        self._questions.add(OWN, lambda: self._desk.answer(token, answer))  # after the change has been committed

    def _change_access(self) -> None:
        """Roles as they are configured now; for what is open already, as soon as all of this turn is open."""

        def end_what_is_not_allowed() -> None:
            for token in self._desk.end_what_is_not_allowed():
                self._on_gone(token)

        self._access.configure(self._config.access, _users(self._config.definitions, self._engine))
        if self._access.has_roles and self._config.daemon.socket_mode is None:
            try:
                self._control.set_mode(SOCKET_MODE_WITH_ROLES)
            except OSError as error:
                log.error("the socket cannot be opened to everyone who has a role: %s", error)
        self._questions.add(OWN, end_what_is_not_allowed)


def _now() -> Now:
    return Now(time.time(), time.monotonic())


def _users(definitions: Definitions, engine: Engine) -> set[str]:
    """Whom jobs run as: those that are defined, and those that began under an older configuration."""
    under_way = (launch.job for launch in engine.under_way().values())
    return {job.user for job in (*_jobs(definitions).values(), *under_way) if job.user}


def _log_entry(entry: JournalEntry) -> None:
    if entry.kind not in _LOGGED and not entry.kind.startswith("run_"):
        return
    level = logging.WARNING if entry.kind in _LOGGED_AS_WARNING else logging.INFO
    subject = " ".join(part for part in (entry.run, entry.job) if part)
    told = ": ".join(part for part in (subject, entry.kind, entry.text) if part)
    log.log(level, "%s%s", told, f" (by {entry.by})" if entry.by else "")


def _difference(old: Definitions, checked: config.Checked) -> Answer:
    """CONTRACT 5's `reload`: names of jobs that come, go, change and stay, or the errors."""
    found: dict[str, Any] = {"added": [], "removed": [], "changed": [], "unchanged": []}
    if checked.config is not None:
        before, after = _jobs(old), _jobs(checked.config.definitions)
        for name in after:
            kind = "added" if name not in before else "unchanged" if before[name] == after[name] else "changed"
            found[kind].append(name)
        found["removed"] = [name for name in before if name not in after]
    return {**found, "errors": [asdict(problem) for problem in checked.errors]}


def _jobs(definitions: Definitions) -> dict[str, Job]:
    return {job.name: job for dag in definitions.dags.values() for job in dag.jobs}
