"""The attacks: who gets which signal, at which instant.

Aims by a sighting of the moment, signals by pidfd, and notes every hit. Restarting is the world's business.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from tests.crash.family import Identity, Process, Sighting, find, send
from tests.crash.operator import Call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.crash.world import World

#: What can be killed; `--kinds`.
KINDS = ("jobd", "forkserver", "shim")
#: Longest time that a process is kept stopped, and that an attacker holds still before a blow.
MAX_FROZEN_S, MAX_AIM_S = 0.3, 0.15
#: How often in a row jobd is killed while it recovers, at most.
MAX_RECOVERY_KILLS = 3
#: Within so much of its start is it killed while it recovers.
RECOVERY_S = 0.35


class Killer:
    def __init__(self, world: World, kinds: set[str]) -> None:
        self._world = world
        self._rng = world.rng
        self._frozen: list[Identity] = []
        attacks: list[tuple[set[str], Callable[[], None]]] = [
            ({"jobd"}, self.kill_jobd),
            ({"jobd"}, self.kill_jobd),
            ({"jobd"}, self.kill_jobd_in_a_command),
            ({"jobd"}, self.kill_jobd_while_it_recovers),
            ({"jobd"}, self.restart_jobd),
            ({"jobd"}, self.shut_jobd_down),
            ({"jobd"}, self.freeze_jobd),
            ({"jobd"}, self.kill_jobd_while_its_orders_wait),
            ({"forkserver"}, self.kill_forkserver),
            ({"forkserver"}, self.freeze_forkserver),
            ({"jobd", "forkserver"}, self.kill_jobd_and_forkserver),
            ({"shim"}, self.kill_shims),
            ({"shim"}, self.kill_shims),
            ({"shim"}, self.freeze_shim),
            ({"jobd", "shim"}, self.kill_jobd_and_shims),
            ({"forkserver", "shim"}, self.kill_forkserver_and_shims),
            ({"jobd", "forkserver", "shim"}, self.kill_everything),
        ]
        self._attacks = [attack for needed, attack in attacks if needed <= kinds]

    def strike(self) -> None:
        """One attack, at random."""
        if self._frozen and self._rng.random() < 0.4:
            self.thaw()
        self._rng.choice(self._attacks)()

    def thaw(self) -> None:
        """Let go on whoever was stopped."""
        for who in self._frozen:
            send(who, signal.SIGCONT)
        self._frozen.clear()

    # ---- jobd --------------------------------------------------------------------------------

    def kill_jobd(self) -> None:
        self._kill("jobd", jobd=True)

    def kill_jobd_in_a_command(self) -> None:
        """It gets a command, and may or may not come to answer it."""
        operator = self._world.operator
        order = operator.think()

        calls: list[Call] = []

        def aim() -> None:
            calls.append(operator.begin(order))
            self._pause(self._rng.choice((0.0, 0.001, 0.003)))

        self._kill("jobd in a command", jobd=True, aim=aim)
        operator.end(calls[0])

    def kill_jobd_while_it_recovers(self) -> None:
        """Again and again, before or just after it answers."""
        self._kill("jobd", jobd=True)
        for _ in range(self._rng.randint(1, MAX_RECOVERY_KILLS)):
            self._pause(0.05)
            self._world.launch()
            self._pause(RECOVERY_S)
            self._kill("jobd while it recovers", jobd=True, aim=lambda: None)

    def restart_jobd(self) -> None:
        """As a service manager does."""
        self._world.leave()
        self._disturb("jobd left (TERM)")

    def shut_jobd_down(self) -> None:
        """It stops its jobs, or waits for them, before it leaves. It may be killed meanwhile."""
        self.thaw()  # a drain would wait for them
        how = self._rng.choice(("stop_jobs", "drain", "SIGINT"))
        kill = self._rng.random() < 0.5
        self._world.shut_down(how)
        if kill:
            self._pause(MAX_FROZEN_S)
            self._kill(f"jobd while it leaves ({how})", jobd=True, aim=lambda: None)
        self._world.await_leave()
        if not kill:
            self._disturb(f"jobd left ({how})")

    def freeze_jobd(self) -> None:
        seen = self._world.look()
        self._freeze("jobd", [seen.jobd] if seen.jobd else [])

    def kill_jobd_while_its_orders_wait(self) -> None:
        """Its helpers are asleep when it gives them work; they wake up when another jobd has given that up."""
        seen = self._world.look()
        idle = [shim for shim in seen.shims if not seen.attempts[shim.who]]
        asleep = [process for process in (*idle, *seen.forkservers) if send(process.who, signal.SIGSTOP)]
        for process in asleep:
            self._world.casualties.stopped(process.who)
            self._frozen.append(process.who)
        self._world.note(f"STOP {[(process.name, process.who.pid) for process in asleep]}")
        operator = self._world.operator
        operator.give(operator.new("restart", {"names": [self._rng.choice([*self._world.setup.dags])]}))
        self._kill("jobd while its orders wait", jobd=True, aim=lambda: self._pause(0.01))

    # ---- its helpers -------------------------------------------------------------------------

    def kill_forkserver(self) -> None:
        self._kill("forkserver", forkservers=True)

    def freeze_forkserver(self) -> None:
        self._freeze("forkserver", self._world.look().forkservers)

    def kill_jobd_and_forkserver(self) -> None:
        self._kill("jobd and forkserver", jobd=True, forkservers=True)

    def kill_shims(self) -> None:
        self._kill("shim", shims=self._rng.choice((1, 1, 1, 2, 3)))

    def freeze_shim(self) -> None:
        """For some attacks to come."""
        for shim in self._some(self._world.look(), 1):
            if send(shim.who, signal.SIGSTOP):
                self._disturb("shim stopped for a while")
                self._world.note(f"STOP shim {shim.who.pid}")
                self._world.casualties.stopped(shim.who)
                self._frozen.append(shim.who)

    def kill_jobd_and_shims(self) -> None:
        self._kill("jobd and shim", jobd=True, shims=self._rng.choice((1, 1, 2)))

    def kill_forkserver_and_shims(self) -> None:
        self._kill("forkserver and shim", forkservers=True, shims=self._rng.choice((1, 1, 2)))

    def kill_everything(self) -> None:
        self._kill("jobd, forkserver and shim", jobd=True, forkservers=True, shims=self._rng.choice((1, 2, 9)))

    def _freeze(self, kind: str, targets: list[Process]) -> None:
        """Stopped, and let go on a little later."""
        hit = [target for target in targets if send(target.who, signal.SIGSTOP)]
        for target in hit:
            self._world.casualties.stopped(target.who)
        if hit:
            self._disturb(f"{kind} stopped for a while")
            self._world.note(f"STOP {kind} {[target.who.pid for target in hit]}")
        self._pause(MAX_FROZEN_S)
        for target in hit:
            send(target.who, signal.SIGCONT)

    # ---- the blow ----------------------------------------------------------------------------

    def _kill(
        self,
        kind: str,
        *,
        jobd: bool = False,
        forkservers: bool = False,
        shims: int = 0,
        aim: Callable[[], None] | None = None,
    ) -> None:
        """SIGKILL to all of them, one right after the other, in any order. `aim` finds the instant."""
        world, seen = self._world, self._world.look()
        targets = [*self._some(seen, shims)]
        targets += seen.forkservers if forkservers else []
        targets += [seen.jobd] if jobd and seen.jobd else []
        self._rng.shuffle(targets)
        if shims and (keys := sorted(key for target in targets for key in seen.attempts.get(target.who, ()))):
            world.add_twin(self._rng.choice(keys))
        (aim or self._aim)()
        asleep = {target.who for target in targets if (now := find(target.who.pid)) and now.state == "T"}
        at = time.clock_gettime(time.CLOCK_BOOTTIME)
        hit = [target for target in targets if send(target.who, signal.SIGKILL)]
        for target in hit:
            # A shim may have gone over to another attempt since it was seen.
            recorded = world.family.attempts_of(target.who)
            attempts = seen.attempts.get(target.who, set()) | recorded.keys()
            nameless = {key for key, has_main in recorded.items() if not has_main}
            world.casualties.killed(target.who, attempts, nameless, asleep=target.who in asleep, at=at)
            world.note(f"KILL {target.name} {target.who.pid} {sorted(attempts) or ''} ({kind})")
        if hit:
            world.casualties.kills[kind] += 1
        if seen.jobd in hit:
            world.bury()

    def _aim(self) -> None:
        """Wait for the instant: any, or just after something has begun or ended."""
        if self._rng.random() < 0.4:
            self._pause(MAX_AIM_S)
            return
        watched = self._rng.choice((self._world.ledger, self._world.records))
        before, deadline = _change(watched), time.monotonic() + MAX_AIM_S
        while _change(watched) == before and time.monotonic() < deadline:
            time.sleep(0.0001)
        self._pause(self._rng.choice((0.0005, 0.003)))

    def _some(self, seen: Sighting, count: int) -> list[Process]:
        """Shims, busy ones first most of the time."""
        busy = [shim for shim in seen.shims if seen.attempts[shim.who]]
        choice = busy if busy and self._rng.random() < 0.85 else seen.shims
        return self._rng.sample(choice, min(count, len(choice)))

    def _disturb(self, kind: str) -> None:
        self._world.casualties.disturbances[kind] += 1

    def _pause(self, longest_s: float) -> None:
        """The instant of an attack is random; nothing is awaited here."""
        time.sleep(self._rng.uniform(0.0, longest_s))


def _change(path: Path) -> tuple[int, int]:
    """Another one whenever the file or folder has changed."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
