"""Who may call what: every method has a role, groups have roles, refusals do not fill the journal."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from supervisor import api, protocol
from supervisor.api import METHODS, Role
from supervisor.config import Access as Groups
from supervisor.config import Group
from supervisor.control import Peer
from supervisor.control.peer import peer_of
from supervisor.core.commands import Command, Report, Start
from supervisor.core.engine import Engine
from supervisor.core.events import Configured, Now, Refused, Requested
from supervisor.core.model import Dag, Definitions, Job
from supervisor.daemon.access import MAX_REFUSALS_TOLD, REFUSAL_TOLD_EVERY_S, Access, Refusals, groups_of

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may become other users")
OWN_UID = os.geteuid()
SOMEONE = 64_000 if OWN_UID != 64_000 else 64_001
NOW = Now(1_000.0, 1_000.0)
GROUPS = Groups(view=(Group("jobs", 11),), operate=(Group("jobops", 12),), admin=(Group("jobadm", 13),))

VIEW = {"wait", "status", "history", "events", "subscribe", "logs", "ping", "version"}
OPERATE = {"start", "stop", "retry", "restart", "hold", "release", "skip", "mark", "report"}
ADMIN = {"reload", "shutdown"}


def member(*gids: int, uid: int = SOMEONE) -> Peer:
    return Peer(1, uid, frozenset(gids))


def access(groups: Groups | None = GROUPS, engine: Engine | None = None, *users: str) -> Access:
    found = Access(engine or Engine(Definitions()), lambda _run: None)
    found.configure(groups, users)
    return found


# ---- methods and roles ---------------------------------------------------------------------------


def test_every_method_has_a_role() -> None:
    assert {method.shape for method in METHODS.values()} == {*get_args(Command), *get_args(api.Query)}
    assert METHODS.keys() == set(protocol.METHODS)
    assert {name for name, method in METHODS.items() if method.role is Role.VIEW} == VIEW
    assert {name for name, method in METHODS.items() if method.role is Role.OPERATE} == OPERATE
    assert {name for name, method in METHODS.items() if method.role is Role.ADMIN} == ADMIN


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        (member(), set()),
        (member(99), set()),
        (member(11), VIEW),
        (member(99, 12), VIEW | OPERATE),
        (member(13), VIEW | OPERATE | ADMIN),
        (member(uid=0), VIEW | OPERATE | ADMIN),
        (member(uid=OWN_UID), VIEW | OPERATE | ADMIN),
    ],
)
def test_roles_include_those_below(peer: Peer, allowed: set[str]) -> None:
    roles = access()
    assert {method for method in METHODS if roles.allows(peer, method)} == allowed
    assert roles.is_stranger(peer) is not bool(allowed)


def test_without_roles_everyone_is_an_admin() -> None:
    roles = access(None)
    assert all(roles.allows(member(), method) for method in METHODS)
    assert not roles.is_stranger(member())


def test_roles_without_groups_leave_root_and_the_own_user() -> None:
    roles = access(Groups())
    assert not any(roles.allows(member(11, 12, 13), method) for method in METHODS)
    assert roles.allows(member(uid=0), "shutdown")


def test_roles_that_are_taken_away_make_nobody_an_admin() -> None:
    roles = access()
    roles.configure(None, [])
    assert not roles.allows(member(11, 12, 13), "ping")
    roles.configure(GROUPS, [])
    assert roles.allows(member(11), "ping")


def test_a_refusal_names_method_role_and_who_may() -> None:
    refusal = access().refusal(member(11), "start")
    assert (refusal.code, refusal.kind) == (5, "not_permitted")
    assert "start needs the role operate" in refusal.message
    assert refusal.hint == "ask someone of the groups jobops, jobadm"
    assert "root" in access(Groups()).refusal(member(), "ping").hint
    assert [group.name for group in groups_of(GROUPS, Role.VIEW)] == ["jobs", "jobops", "jobadm"]


# ---- a job's own user ----------------------------------------------------------------------------


def definitions(user: str | None) -> Definitions:
    jobs = (
        Job(name="mine", dag="main", command="true", dir="/", user=user),
        Job(name="theirs", dag="main", command="true", dir="/", user="root"),
        Job(name="plain", dag="main", command="true", dir="/"),
    )
    return Definitions(dags={"main": Dag(name="main", jobs=jobs)})


@pytest.fixture
def engine() -> Engine:
    """Its jobs run; one as the user daemon, one as root, one as jobd's own."""
    engine = Engine(definitions("daemon"))
    engine.handle(Requested(0, Start(), "root"), NOW)
    return engine


def daemon_uid() -> int:
    import pwd

    try:
        return pwd.getpwnam("daemon").pw_uid
    except KeyError:
        pytest.skip("this machine has no account daemon")


def test_a_user_may_report_on_a_job_that_runs_as_him_and_on_no_other(engine: Engine) -> None:
    user = member(uid=daemon_uid())
    roles = access(GROUPS, engine, "daemon", "root")
    own = roles.as_own_report(user, Report(outcome="success", job="mine"))
    assert own is not None
    newest = engine.registry.newest("main")
    assert newest is not None
    assert own.run == newest.run.name  # what was judged is what is reported on
    for job in ("theirs", "plain", "main", "nobody"):
        assert roles.as_own_report(user, Report(outcome="success", job=job)) is None
    assert roles.as_own_report(user, Report(outcome="success", job="mine", run="main@1999")) is None
    assert roles.as_own_report(user, Start(names=("mine",))) is None
    assert roles.as_own_report(member(), Report(outcome="success", job="mine")) is None
    assert not roles.is_stranger(user)


def test_the_user_that_a_run_began_with_counts(engine: Engine) -> None:
    user = member(uid=daemon_uid())
    roles = access(GROUPS, engine, "daemon")
    engine.handle(Configured(definitions("root")), NOW)
    roles.configure(GROUPS, ["root"])
    assert roles.as_own_report(user, Report(outcome="success", job="mine")) is not None


def test_a_user_that_this_machine_does_not_have_is_nobody(engine: Engine) -> None:
    roles = access(GROUPS, engine, "no-such-user")
    assert roles.is_stranger(member())


# ---- the journal ---------------------------------------------------------------------------------


def test_a_refusal_is_an_entry_of_the_journal() -> None:
    entry = Refusals().entry(member(), "start", Start(names=("nightly",)), 0.0)
    assert entry == Refused("start nightly: needs the role operate", f"uid {SOMEONE}")
    [decision] = Engine(Definitions()).handle(entry, NOW)
    assert decision.entry.kind == "refused"  # type: ignore[union-attr]


def test_further_refusals_are_counted_and_told_with_the_next_entry() -> None:
    refusals = Refusals()
    entries = [refusals.entry(member(), "start", None, 0.1 * number) for number in range(100)]
    assert sum(entry is not None for entry in entries) == 1
    assert refusals.entry(member(), "stop", None, 10.0)
    late = refusals.entry(member(), "start", None, REFUSAL_TOLD_EVERY_S)
    assert late
    assert "99 more like this" in late.text
    later = refusals.entry(member(), "start", None, 2 * REFUSAL_TOLD_EVERY_S)
    assert later
    assert "more like this" not in later.text


def test_a_user_of_many_numbers_fills_neither_journal_nor_memory() -> None:
    refusals = Refusals()
    entries = [refusals.entry(member(uid=100_000 + number), "ping", None, 0.0) for number in range(10_000)]
    assert sum(entry is not None for entry in entries) == MAX_REFUSALS_TOLD
    assert len(refusals._told) == MAX_REFUSALS_TOLD
    late = refusals.entry(member(), "ping", None, 3 * REFUSAL_TOLD_EVERY_S)
    assert late
    assert f"{10_000 - MAX_REFUSALS_TOLD} refusals of any kind" in late.text


def test_what_strangers_write_cannot_forge_lines_of_the_log() -> None:
    entry = Refusals().entry(member(), "start", Start(names=("x\n\x1b[2Jroot: all is well" + "y" * 1000,)), 0.0)
    assert entry
    assert entry.text.isprintable()
    assert len(entry.text) < 300


# ---- the kernel's word ---------------------------------------------------------------------------


def test_who_is_at_the_other_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_of(ours) == Peer(os.getpid(), os.getuid(), frozenset({os.getgid(), *os.getgroups()}))


@needs_root
@pytest.mark.parametrize("count", [0, 2, 256, 257, 5_000])
def test_all_groups_are_known_however_many(tmp_path: Path, count: int) -> None:
    groups = set(range(70_000, 70_000 + count))
    script = f"import os, socket; os.setgroups({sorted(groups)}); os.setgid(60_001); os.setuid(60_002); "
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0jobd-test-{os.getpid()}")
        listener.listen()
        script += f"socket.socket(socket.AF_UNIX).connect({listener.getsockname()!r})"
        with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path):
            sock, _address = listener.accept()
    with sock:
        peer = peer_of(sock)  # which is gone by now, and is known all the same
    assert (peer.uid, peer.groups) == (60_002, frozenset({60_001, *groups}))
