"""What lives on while daemons die, in the crash simulation: shims, processes, the attempts' records.

`Machine` is the world's side: it keeps the ledger of what truly ran and how it truly ended. `Hands` is
the executor of one life of the daemon: it behaves as `supervisor.executor` promises, in steps so small
that a daemon can die between any two of them. Knows nothing of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random

from supervisor.core.events import Cause, Ending, Event, Exited, Halt, Launch, NotStarted, Now, Started

#: What must never be: more processes of one attempt than this.
MAX_EXECS = 1

Word = Started | Exited | NotStarted


@dataclass
class Record:
    """Of one attempt: taken by a shim, or given up. `ending`: what its shim saw."""

    given_up: str = ""
    ending: Ending | None = None


@dataclass
class Shim:
    """`stage`: it was ordered to begin, has made the record, or runs the job."""

    launch: Launch
    life: int
    stage: str = "ordered"
    halt: Halt | None = None
    began_at: float = 0.0


@dataclass
class Machine:
    choose: Random
    now: Callable[[], Now]
    has_faults: bool = True
    life: int = 0  # of the daemon; each has a number
    hands: Hands | None = None  # those of the daemon, while one lives
    shims: dict[int, Shim] = field(default_factory=dict)  # attempt id ->
    records: dict[int, Record] = field(default_factory=dict)
    execs: dict[int, int] = field(default_factory=dict)  # attempt id -> processes that were begun for it
    truth: dict[int, Ending] = field(default_factory=dict)  # attempt id -> how it ended
    suspects: set[int] = field(default_factory=set)  # of an earlier boot: no record need not mean no process

    # ---- what happens by itself ----------------------------------------------------------------

    def move(self) -> str:
        """Something happens to one shim. What it was, for the trace; empty if there is none."""
        if not self.shims:
            return ""
        attempt_id = self.choose.choice(list(self.shims))
        shim = self.shims[attempt_id]
        if self.has_faults and self.choose.random() < 0.04:
            self._kill_shim(attempt_id, shim)
        elif shim.stage == "ordered":
            self._take_record(attempt_id, shim)
        elif shim.stage == "took":
            self._begin(attempt_id, shim)
        elif not self.has_faults or self.choose.random() < 0.2:
            self.end(attempt_id, shim, self._some_ending(shim))
        after = self.shims.get(attempt_id)
        return f"the shim of attempt {attempt_id} was {shim.stage}, is {after.stage if after else 'gone'}"

    def _take_record(self, attempt_id: int, shim: Shim) -> None:
        if attempt_id in self.records:
            self._leave(attempt_id, NotStarted(attempt_id, "it was given up before its shim could begin"))
            return
        self.records[attempt_id] = Record()
        shim.stage = "took"

    def _begin(self, attempt_id: int, shim: Shim) -> None:
        """It has the record. Left alone, it lets go of it; else the process begins, or cannot."""
        fate = self.choose.random()
        if shim.life != self.life or self.hands is None:
            del self.records[attempt_id]
            self._leave(attempt_id, None)
        elif self.has_faults and fate < 0.05:
            self.records[attempt_id].given_up = "fork: Resource temporarily unavailable"
            self._leave(attempt_id, NotStarted(attempt_id, "fork: Resource temporarily unavailable"))
        elif self.has_faults and fate < 0.1:
            self._note_end(attempt_id, Ending(cause=Cause.UNSTARTABLE, text="could not start: no such command"))
        else:
            self.execs[attempt_id] = self.execs.get(attempt_id, 0) + 1
            assert self.execs[attempt_id] <= MAX_EXECS, f"attempt {attempt_id} is executed once more"
            shim.stage, shim.began_at = "runs", self.now().wall
            self._tell(Started(attempt_id, 4711, shim.began_at))

    def _kill_shim(self, attempt_id: int, shim: Shim) -> None:
        """Its process ends with it. Somebody else may have seen how; else the record says nothing of an end."""
        if shim.stage == "runs" and self.choose.random() < 0.5:
            self.end(attempt_id, shim, self._some_ending(shim))
            return
        if shim.stage != "ordered":
            self.truth[attempt_id] = Ending(cause=Cause.LOST, text="its shim was killed")
        self._leave(attempt_id, None)

    def end(self, attempt_id: int, shim: Shim, ending: Ending) -> None:
        assert shim.stage == "runs"
        self._note_end(attempt_id, ending)

    def _note_end(self, attempt_id: int, ending: Ending) -> None:
        self.truth[attempt_id] = self.records[attempt_id].ending = ending
        self._leave(attempt_id, Exited(attempt_id, ending))

    def _some_ending(self, shim: Shim) -> Ending:
        kind, code = self.choose.random(), self.choose.choice([1, 3, 75])
        seen = Ending(
            cause=Cause.EXITED,
            started_at=shim.began_at,
            finished_at=self.now().wall,
            duration_s=self.choose.choice([1.0, None]),
        )
        if not self.has_faults:
            return replace(seen, exit_code=0)
        if shim.halt is not None and kind < 0.7:
            return replace(seen, cause=Cause.STOPPED, signal=15)
        if shim.launch.job.timeout_s is not None and kind < 0.05:
            return replace(seen, cause=Cause.TIMEOUT, signal=9)
        if kind < 0.1:
            return replace(seen, signal=11)
        return replace(seen, exit_code=0 if kind < 0.7 else code)

    def _leave(self, attempt_id: int, word: Word | None) -> None:
        """The shim has gone or is idle again. Its own daemon gets its word; one that adopted it sees it go."""
        shim = self.shims.pop(attempt_id)
        if self.hands is None:
            return
        if shim.life == self.life and word is not None:
            self._tell(word)
        else:
            self.hands.see_go(attempt_id)

    def _tell(self, word: Word) -> None:
        if self.hands is not None:
            self.hands.hear(word)

    # ---- greater evils -------------------------------------------------------------------------

    def reboot(self, under_way: Iterable[int]) -> None:
        """The power fails: nothing runs any more, and some records, which nobody synced, are gone.

        `under_way`: attempts whose end the daemon has not recorded. One that has no record now may have run.
        """
        self.suspects |= set(under_way)
        for attempt_id, shim in self.shims.items():
            if shim.stage != "ordered":
                self.truth[attempt_id] = Ending(cause=Cause.LOST, text="the machine went down while it ran")
        self.shims.clear()
        for attempt_id in list(self.records):
            if self.choose.random() < 0.5:
                del self.records[attempt_id]
        for attempt_id in set(under_way) - self.records.keys():
            self.truth[attempt_id] = Ending(cause=Cause.LOST, text="the machine went down, and no record was kept")


@dataclass
class Hands:
    """The executor of one life. `emit` takes what it has to say; it is called from `look` only."""

    machine: Machine
    emit: Callable[[Event], None]
    heard: list[Word] = field(default_factory=list)
    unsettled: dict[int, Halt | None] = field(default_factory=dict)  # how each is to be ended, once it is found
    busy: set[int] = field(default_factory=set)

    def start(self, launch: Launch) -> None:
        attempt_id = launch.attempt_id
        assert attempt_id not in self.machine.records | self.machine.shims, f"attempt {attempt_id} is started twice"
        if self.machine.has_faults and self.machine.choose.random() < 0.03:
            self.heard.append(NotStarted(attempt_id, "no shim can be made"))
            return
        self.machine.shims[attempt_id] = Shim(launch, self.machine.life)
        self.busy.add(attempt_id)

    def signal(self, attempt_id: int, halt: Halt) -> None:
        if attempt_id in self.unsettled:
            self.unsettled[attempt_id] = halt
        elif attempt_id in self.busy and attempt_id in self.machine.shims:
            self.machine.shims[attempt_id].halt = halt

    def recover(self, under_way: Iterable[int]) -> None:
        """Of all others nothing is needed any more."""
        self.unsettled = dict.fromkeys(under_way)
        for attempt_id in self.machine.records.keys() - self.unsettled.keys() - self.machine.shims.keys():
            del self.machine.records[attempt_id]

    def forget(self, attempt_id: int) -> None:
        self.machine.records.pop(attempt_id, None)

    def hear(self, word: Word) -> None:
        self.heard.append(word)

    def see_go(self, attempt_id: int) -> None:
        if attempt_id in self.busy:
            self.unsettled[attempt_id] = None

    def look(self) -> str:
        """One step of what it has to do; what it was, empty if there was nothing."""
        if self.heard:
            word = self.heard.pop(0)
            if not isinstance(word, Started):
                self.busy.discard(word.attempt_id)
            self.emit(word)
            return "hears of an attempt"
        if self.unsettled:
            attempt_id = self.machine.choose.choice(list(self.unsettled))
            self._settle(attempt_id, self.unsettled.pop(attempt_id))
            return "settles an attempt"
        return ""

    def _settle(self, attempt_id: int, halt: Halt | None) -> None:
        """Nobody tells us about this attempt: its record does."""
        machine = self.machine
        kept, shim = machine.records.get(attempt_id), machine.shims.get(attempt_id)
        self.busy.discard(attempt_id)
        if kept is None and attempt_id not in machine.suspects:
            kept = machine.records[attempt_id] = Record(given_up="jobd or its shim went away before the start")
        if kept is not None and kept.given_up:
            self.emit(NotStarted(attempt_id, kept.given_up))
        elif kept is not None and kept.ending is not None:
            self.emit(Exited(attempt_id, kept.ending))
        elif shim is not None:
            shim.halt = halt or shim.halt
            self.busy.add(attempt_id)
            if shim.stage == "runs":
                self.emit(Started(attempt_id, 4711, shim.began_at))
        else:
            self.emit(Exited(attempt_id, Ending(cause=Cause.LOST, text="nobody saw the end")))
