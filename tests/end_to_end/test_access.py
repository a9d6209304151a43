"""Roles with a real daemon and real users: who is outside is refused, and the journal says so."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import PATIENCE_S, PROJECT, Jobd, Result
from tests.end_to_end.test_wrong_input import check

#: Groups and accounts that every Debian has.
VIEWERS, OPERATORS, ADMINS, USER, OTHER_USER = "games", "mail", "news", "games", "mail"
ROLES = f"""
[access]
view = ["{VIEWERS}"]
operate = ["{OPERATORS}"]
admin = ["{ADMINS}"]
"""
JOBS = "[jobs.one]\ncommand = 'exit 0'\n[jobs.two]\ncommand = 'exec sleep 600'\n"
SOMEONE = 64_000


def _has_accounts() -> bool:
    try:
        return all((*map(grp.getgrnam, (VIEWERS, OPERATORS, ADMINS)), *map(pwd.getpwnam, (USER, OTHER_USER))))
    except KeyError:
        return False


pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="only root may become other users"),
    pytest.mark.skipif(not _has_accounts(), reason="this machine lacks the accounts of Debian"),
]

#: Becomes someone else before it connects, but after it has loaded what he may not be able to read: it tries the
#: same command where no daemon is.
JOBCTL_AS = """
import contextlib, datetime, io, os, sys
from ctl.cli import main
uid, *groups = map(int, sys.argv.pop(1).split(","))
with contextlib.redirect_stderr(io.StringIO()) as said:
    path, os.environ["JOBD_SOCKET"] = os.environ["JOBD_SOCKET"], "/nowhere"
    job = os.environ.pop("JOBD_JOB", None)  # inside a job a report would wait for a daemon
    assert main() in (2, 3), said.getvalue()
    os.environ |= {"JOBD_SOCKET": path} | ({"JOBD_JOB": job} if job else {})
os.setgroups(groups[1:])
os.setgid(groups[0])
os.setuid(uid)
sys.exit(main())
"""


class Someone:
    """A user who calls jobctl."""

    def __init__(self, jobd: Jobd, *groups: str, uid: int = SOMEONE) -> None:
        self._jobd = jobd
        self._ids = ",".join(str(number) for number in (uid, SOMEONE, *(grp.getgrnam(name).gr_gid for name in groups)))
        self.name = f"uid {uid}"

    def popen(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", JOBCTL_AS, self._ids, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env={**os.environ, "JOBD_SOCKET": str(self._jobd.socket), **env},
        )

    def ctl(self, *arguments: str, code: int = 0, **env: str) -> Result:
        with self.popen(*arguments, **env) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        result = Result(process.returncode, out, err)
        assert result.code == code, f"jobctl {' '.join(arguments)} as {self._ids}: {result}"
        return result


@pytest.fixture
def jobd() -> Iterator[Jobd]:
    """In a folder that others can enter, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="jobd-access-"))
    folder.chmod(0o755)
    daemon = Jobd(folder)
    yield daemon
    daemon.clean_up()
    shutil.rmtree(folder)


@pytest.fixture
def stranger(jobd: Jobd) -> Someone:
    return Someone(jobd)


@pytest.fixture
def viewer(jobd: Jobd) -> Someone:
    return Someone(jobd, VIEWERS)


@pytest.fixture
def operator(jobd: Jobd) -> Someone:
    return Someone(jobd, OPERATORS)


def refusals(jobd: Jobd) -> list[tuple[str, str]]:
    """What the journal has, as `by` and `text`."""
    events = [json.loads(line) for line in jobd.ctl("events", "--json").out.splitlines()]
    return [(event["by"], event["text"]) for event in events if event["kind"] == "refused"]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- roles ---------------------------------------------------------------------------------------


def test_a_user_outside_every_group_may_do_nothing_and_the_journal_says_so(jobd: Jobd, stranger: Someone) -> None:
    jobd.start(JOBS + ROLES)
    assert mode_of(jobd.socket) == 0o666
    for command in ("ping", "status", "events", "start", "shutdown"):
        err = stranger.ctl(command, code=5).err
        assert f"{command} needs the role" in err
    assert stranger.ctl("start", "one", code=5).err.endswith(f"ask someone of the groups {OPERATORS}, {ADMINS}\n")
    told = refusals(jobd)
    assert {by for by, _text in told} == {stranger.name}
    assert [text.partition(":")[0] for _by, text in told] == ["ping", "status", "events", "start", "shutdown"]
    assert set(jobd.states().values()) == {"stopped"}


def test_a_viewer_cannot_start(jobd: Jobd, viewer: Someone) -> None:
    jobd.start(JOBS + ROLES)
    for command in ("ping", "version", "status", "events", "history"):
        viewer.ctl(command)
    for line in ("start", "stop", "retry", "restart", "hold one", "release one", "skip one", "mark one success"):
        assert "needs the role operate" in viewer.ctl(*line.split(), code=5).err
    viewer.ctl("report", "data", "--job", "one", "--data", "1", code=5)
    viewer.ctl("start", "--dry-run", code=5)
    viewer.ctl("reload", code=5)
    assert ("uid 64000", "start: needs the role operate") in refusals(jobd)
    assert ("uid 64000", "hold one: needs the role operate") in refusals(jobd)


def test_an_operator_cannot_shut_down_and_an_admin_can(jobd: Jobd, operator: Someone) -> None:
    jobd.start(JOBS + ROLES)
    operator.ctl("start", "one", "--wait")
    operator.ctl("status")
    assert "needs the role admin" in operator.ctl("shutdown", code=5).err
    operator.ctl("reload", code=5)
    assert [text for _by, text in refusals(jobd)] == ["shutdown: needs the role admin", "reload: needs the role admin"]
    admin = Someone(jobd, ADMINS)
    admin.ctl("reload")
    admin.ctl("shutdown")
    assert jobd.process
    assert jobd.process.wait(PATIENCE_S) == 0


def test_without_roles_the_mode_of_the_socket_decides(jobd: Jobd, stranger: Someone) -> None:
    jobd.start(JOBS)
    assert mode_of(jobd.socket) == 0o660
    assert "not permitted to use" in stranger.ctl("ping", code=5).err


def test_a_mode_that_is_configured_stays(jobd: Jobd, viewer: Someone) -> None:
    jobd.start(JOBS + ROLES + "[daemon]\nsocket_mode = '600'\n")
    assert mode_of(jobd.socket) == 0o600
    viewer.ctl("ping", code=5)


def test_an_unknown_group_is_an_error_of_the_configuration(jobd: Jobd) -> None:
    jobd.configure(JOBS + "[access]\nview = ['no-such-group']\n")
    checked = check(jobd)
    assert checked.returncode == 78
    assert 'access.view: this machine has no group "no-such-group"' in checked.stderr


# ---- reload --------------------------------------------------------------------------------------


def test_a_reload_counts_for_what_is_open_already(jobd: Jobd, viewer: Someone) -> None:
    jobd.start(JOBS + ROLES)
    jobd.ctl("start", "two")
    watchers = [viewer.popen("events", "-f", "--since", "0"), viewer.popen("wait", "two")]
    assert watchers[0].stdout
    assert any("running" in line for line in watchers[0].stdout)
    jobd.configure(JOBS + ROLES.replace(VIEWERS, OPERATORS))
    jobd.ctl("reload")
    for watcher, method in zip(watchers, ("subscribe", "wait"), strict=True):
        _out, err = watcher.communicate(timeout=PATIENCE_S)
        assert watcher.returncode == 5
        assert f"{method} needs the role view" in err
    viewer.ctl("status", code=5)
    jobd.ctl("ping")


def test_roles_can_come_by_reload_and_cannot_go_by_it(jobd: Jobd, viewer: Someone, stranger: Someone) -> None:
    jobd.start(JOBS)
    viewer.ctl("ping", code=5)
    jobd.configure(JOBS + ROLES)
    jobd.ctl("reload")
    viewer.ctl("ping")
    viewer.ctl("start", code=5)
    jobd.configure(JOBS)
    jobd.ctl("reload")
    for someone in (viewer, stranger):
        someone.ctl("ping", code=5)
    jobd.ctl("shutdown")
    assert jobd.process
    jobd.process.wait(PATIENCE_S)
    jobd.start()
    assert mode_of(jobd.socket) == 0o660


# ---- a job's own user ----------------------------------------------------------------------------

REPORTING = f"""
[jobs.mine]
command = "exec sleep 600"
user = "{USER}"
finish = "report"
[jobs.theirs]
command = "exec sleep 600"
user = "{OTHER_USER}"
[jobs.plain]
command = "exec sleep 600"
""" + ROLES.replace(VIEWERS, ADMINS)


def test_a_jobs_own_user_may_report_on_it_and_nothing_more(jobd: Jobd) -> None:
    jobd.start(REPORTING)
    user = Someone(jobd, uid=pwd.getpwnam(USER).pw_uid)
    user.ctl("report", "success", "--job", "mine", code=5)  # there is no run yet
    jobd.ctl("start")
    for command in (["ping"], ["status"], ["start", "mine"], ["mark", "mine", "success"], ["logs", "mine"]):
        user.ctl(*command, code=5)
    for job in ("theirs", "plain", "main", "no-such-job"):
        assert "a job's own user may report on that job" in user.ctl("report", "success", "--job", job, code=5).err
    jobd.await_event(lambda event: event["kind"] == "running" and event["job"] == "mine")
    inside = {"JOBD_JOB": "mine", "JOBD_RUN": jobd.jobs()["mine"]["run"], "JOBD_ATTEMPT": "1"}
    user.ctl("report", "data", "--data", "7", **inside)
    user.ctl("report", "success", **inside)
    jobd.ctl("wait", "mine")
    assert jobd.jobs()["mine"]["data"] == 7
    assert [state for job, state in jobd.states().items() if job != "mine"] == ["running", "running"]
    assert ("uid 5", "report mine: needs the role operate") in refusals(jobd)


def test_a_job_reports_from_inside(jobd: Jobd) -> None:
    script = jobd.folder / "report.py"
    script.write_text("""
import json, os, socket
params = {"outcome": "success", "data": 5, "attempt": 1, "job": os.environ["JOBD_JOB"], "run": os.environ["JOBD_RUN"]}
jobd = socket.socket(socket.AF_UNIX)
jobd.connect(os.environ["JOBD_SOCKET"])
jobd.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "report", "params": params}).encode() + b"\\n")
print(jobd.recv(65536).decode())
""")
    jobd.start(f"[jobs.mine]\ncommand = 'python3 {script}; exit 3'\nuser = '{USER}'\n{ROLES}")
    jobd.ctl("start", "mine", "--wait")
    assert jobd.jobs()["mine"]["data"] == 5
    assert refusals(jobd) == []


# ---- strangers in numbers ------------------------------------------------------------------------

FLOOD = """
import json, os, socket, sys
os.setgroups([]); os.setgid(64000); os.setuid(64000)
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
answers = sock.makefile("rb")
for number in range(500):
    sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"start"}\\n')
    assert json.loads(answers.readline())["error"]["code"] == 5
"""
CROWD = """
import os, socket, sys
os.setgroups([]); os.setgid(64000); os.setuid(64000)
crowd = []
for number in range(300):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    try:
        sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\\n')
    except BrokenPipeError:
        pass  # turned away already
    crowd.append((sock, sock.recv(10_000)))
print(sum(b"not_permitted" in answer for _sock, answer in crowd), flush=True)
sys.stdin.read()
"""


def test_refusals_in_great_number_do_not_fill_the_journal(jobd: Jobd) -> None:
    jobd.start(JOBS + ROLES)
    subprocess.run([sys.executable, "-c", FLOOD, str(jobd.socket)], check=True, timeout=PATIENCE_S)
    assert 1 <= len(refusals(jobd)) <= 1 + PATIENCE_S // 60


def test_strangers_cannot_take_all_places(jobd: Jobd, viewer: Someone) -> None:
    jobd.start(JOBS + ROLES)
    crowd = subprocess.Popen(
        [sys.executable, "-c", CROWD, str(jobd.socket)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with crowd:
        assert crowd.stdout
        assert int(crowd.stdout.readline()) == 16
        viewer.ctl("ping")
        with socket.socket(socket.AF_UNIX) as own:
            own.connect(str(jobd.socket))
            own.sendall(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
            assert b"result" in own.recv(10_000)
        crowd.communicate("")
