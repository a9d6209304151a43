"""The nouns: what is defined (Job, Dag, Definitions) and what becomes of it (Run, Node, Attempt).

Definitions are frozen values made by `supervisor.config`. Runs, nodes and attempts are records
that only the engine changes; their durable form is the same dataclass.

All times are seconds as floats. `*_at` fields are wall-clock (Unix epoch, UTC); `*_s` are durations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from zoneinfo import ZoneInfo


class State(StrEnum):
    """State of one job within one run."""

    STOPPED = "stopped"
    QUEUED = "queued"
    BLOCKED = "blocked"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCESS = "success"
    FAILED = "failed"
    LOST = "lost"
    SKIPPED = "skipped"


#: States that end a job: a known outcome, or one that can never be known.
ENDED = frozenset({State.SUCCESS, State.FAILED, State.LOST, State.SKIPPED})
#: States in which an attempt is under way.
ACTIVE = frozenset({State.RUNNING, State.STOPPING})
#: States in which a job wants to run and waits.
WAITING = frozenset({State.QUEUED, State.BLOCKED})
#: States in which nothing happens to a job until someone asks for it.
AT_REST = ENDED | {State.STOPPED}


class Outcome(StrEnum):
    """What a need asks of its upstream."""

    SUCCESS = "success"
    FAILED = "failed"
    DONE = "done"


class Finish(StrEnum):
    """When an attempt has ended."""

    TREE = "tree"  # no process of it is left
    MAIN = "main"  # the first process ends; leftovers are killed
    REPORT = "report"  # someone reports


class Trigger(StrEnum):
    """Why a run exists."""

    SCHEDULE = "schedule"
    COMMAND = "command"
    CATCHUP = "catchup"
    AUTOSTART = "autostart"


@dataclass(frozen=True, slots=True)
class Need:
    """One upstream and the outcome that is asked of it."""

    job: str
    outcome: Outcome = Outcome.SUCCESS

    def __str__(self) -> str:
        return self.job if self.outcome is Outcome.SUCCESS else f"{self.job}:{self.outcome}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Resource limits of one attempt; None = the daemon's own."""

    memory_bytes: int | None = None
    cpu_time_s: float | None = None
    open_files: int | None = None
    processes: int | None = None
    nice: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A named command, as defined. `needs`: all of the groups; a group is met by any of its members."""

    name: str
    dag: str
    command: str | tuple[str, ...]  # text: /bin/sh -c; a tuple: argv without a shell
    dir: str  # absolute
    description: str = ""
    tags: tuple[str, ...] = ()
    enabled: bool = True
    env: dict[str, str] = field(default_factory=dict)
    env_file: str | None = None  # absolute
    user: str | None = None
    umask: int | None = None
    needs: tuple[tuple[Need, ...], ...] = ()
    timeout_s: float | None = None
    retries: int = 0
    retry_delay_s: float = 0.0
    retry_backoff: float = 1.0
    retry_max_delay_s: float | None = None
    retry_codes: tuple[int, ...] | None = None  # None = any failure
    retry_lost: bool = False
    success_codes: tuple[int, ...] = (0,)
    skip_codes: tuple[int, ...] = ()
    finish: Finish = Finish.TREE
    stop_signal: int = 15
    stop_timeout_s: float = 10.0
    pool: str | None = None
    slots: int = 1
    priority: int = 0
    limits: Limits = Limits()
    log_max_bytes: int = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Dag:
    """A set of jobs that run together. `jobs` is in dependency order: needs come first."""

    name: str
    description: str = ""
    timezone: str = "UTC"
    autostart: bool = False
    max_running: int = 0  # 0 = no limit
    jobs: tuple[Job, ...] = ()

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definitions:
    """All that the engine needs to know of a configuration."""

    dags: dict[str, Dag] = field(default_factory=dict)
    pools: dict[str, int] = field(default_factory=dict)  # name -> slots
    max_running: int = 0  # jobs at once over all dags, 0 = no limit


@dataclass(slots=True, kw_only=True)
class Run:
    """One pass through a dag. It keeps the definitions that it began with.

    `after` names a run that must have no attempt under way before this one starts any.
    """

    id: int
    name: str  # DAG@YYYY-MM-DDTHH:MM…
    dag: Dag
    run_date: str  # YYYY-MM-DD in the dag's zone
    trigger: Trigger
    created_at: float
    after: int | None = None
    started_at: float | None = None  # first attempt
    finished_at: float | None = None  # when it was last seen to have nothing left to do


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One execution of a job. Final once `state` is neither running nor stopping."""

    id: int  # unique for ever
    run_id: int
    job: str
    number: int  # from 1, within the run
    state: State
    log: str  # path relative to the log folder
    started_at: float
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    finished_at: float | None = None
    duration_s: float | None = None
    cpu_s: float | None = None
    max_rss_bytes: int | None = None
    log_dropped_bytes: int = 0
    reported: Outcome | None = None  # SUCCESS or FAILED, told by the job or about it
    message: str = ""  # text of the report
    data: int | None = None  # amount of data that was reported


@dataclass(slots=True, kw_only=True)
class Node:
    """The durable part of one job within one run."""

    run_id: int
    job: str
    state: State
    reason: str = ""  # one sentence for people
    attempts: int = 0
    attempt_id: int | None = None  # the newest attempt
    tries: int = 0  # automatic retries used since someone asked for the job
    retry_at: float | None = None  # not before
    forced: bool = False  # ignores needs, time and slots
    again: bool = False  # queue it once more as soon as it has stopped
    by_operator: bool = False  # the outcome was set by skip or mark


@dataclass(slots=True, kw_only=True)
class Hold:
    """A job or dag that starts nothing new."""

    name: str
    by: str
    at: float
    reason: str = ""
    until: float | None = None


@dataclass(slots=True, kw_only=True)
class JournalEntry:
    """One line of the journal of events. Ids rise without gaps.

    The state of every job is the fold of the journal: `run_created` sets all jobs of the run to
    `stopped`, `run_started` to `queued`; after that, an entry whose kind is a state sets its job to it.
    """

    id: int
    at: float
    kind: str
    run: str | None = None
    dag: str | None = None
    job: str | None = None
    attempt: int | None = None
    text: str = ""
    by: str | None = None


@dataclass(slots=True)
class Snapshot:
    """All durable state, or that of some runs. `attempts`: at least the newest of each node.

    The last ids are the highest ever given, those of deleted records included.
    """

    runs: list[Run] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    last_event_id: int = 0
    last_run_id: int = 0
    last_attempt_id: int = 0
