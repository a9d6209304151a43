"""No more processes, descriptors or room for logs: jobs wait or do without, and it recovers by itself."""

from __future__ import annotations

import array
import contextlib
import fcntl
import itertools
import json
import os
import resource
import select
import shutil
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from tests.end_to_end.conftest import PATIENCE_S, PROJECT, Jobd

#: Limits of processes do not hold for root, so it takes a user of its own: nobody else has this id.
LONELY_UID = 54_321
#: It may read the project and the interpreter, wherever they are.
AS_LONELY_USER = (
    *("setpriv", f"--reuid={LONELY_UID}", f"--regid={LONELY_UID}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
#: How long a busy loop is looked for, and the processor time that none takes in it.
WINDOW_S, IDLE_CPU_S = 1.0, 0.3


class LonelyJobd(Jobd):
    """Runs as a user for whom limits of processes hold."""

    def start(self, text: str | None = None) -> Jobd:
        if os.getuid() != 0:
            return super().start(text)
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is needed to run as another user")
        if text is not None:
            self.configure(text)
        os.chown(self.folder, LONELY_UID, LONELY_UID)
        command = [*AS_LONELY_USER, sys.executable, "-m", "supervisor", "-c", str(self.config)]
        command += ["--state-dir", str(self.state), "--socket", str(self.socket)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=PROJECT)
        serves = threading.Event()
        threading.Thread(target=self._read_log, args=(self.process, serves), daemon=True).start()
        assert serves.wait(PATIENCE_S)
        assert " serves " in self.log, f"jobd did not start:\n{self.log}"
        return self


@pytest.fixture
def lonely(tmp_path: Path) -> Iterator[Jobd]:
    daemon = LonelyJobd(tmp_path)
    yield daemon
    daemon.clean_up()


def family(jobd: Jobd) -> list[psutil.Process]:
    """jobd and its helpers."""
    assert jobd.process is not None
    daemon = psutil.Process(jobd.process.pid)
    return [daemon, *daemon.children(recursive=True)]


def limit_processes(jobd: Jobd, count: int | None) -> None:
    """Of jobd's user; None: as many as it may have. A process may be limited by its own user only."""
    for process in family(jobd):
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        soft = hard if count is None else count
        text = f"import resource; resource.prlimit({process.pid}, resource.RLIMIT_NPROC, ({soft}, {hard}))"
        subprocess.run([*(() if os.getuid() else AS_LONELY_USER), sys.executable, "-c", text], check=True)


def take_descriptors(process: psutil.Process, left: int = 0) -> None:
    """It cannot open more than that many."""
    used = {int(path.name) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
    free = (number for number in itertools.count() if number not in used)
    first_denied = next(itertools.islice(free, left, None))
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (first_denied, hard))


def give_descriptors(jobd: Jobd) -> None:
    for process in family(jobd):
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (hard, hard))


def events_of(jobd: Jobd, kind: str) -> list[dict[str, Any]]:
    lines = jobd.ctl("events", "--since", "0", "--json").out.splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def assert_idle(jobd: Jobd) -> None:
    """jobd's helpers and itself take hardly any processor time."""
    before = {process: sum(process.cpu_times()[:2]) for process in family(jobd)}
    select.select([], [], [], WINDOW_S)
    used_s = sum(sum(process.cpu_times()[:2]) - cpu_s for process, cpu_s in before.items() if process.is_running())
    assert used_s < IDLE_CPU_S


# ---- no more processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [False, True], ids=["no shim can be forked", "no job can be forked"])
def test_without_processes_jobs_stay_queued_and_start_by_themselves_once_there_are_some(
    lonely: Jobd, warm: bool
) -> None:
    lonely.start(
        "[dags.warm]\n[jobs.first]\ndag = 'warm'\ncommand = 'true'\n[jobs.one]\ncommand = 'echo one >> ledger'\n"
        "[jobs.two]\ncommand = 'echo two >> ledger'\nneeds = ['one']\n"
    )
    if warm:
        lonely.ctl("start", "first", "--wait")  # it leaves an idle shim
    limit_processes(lonely, 1)
    lonely.ctl("start", "main")
    refused = lonely.await_event(lambda event: event["kind"] == "start_refused")
    assert "fork failed" in refused["text"] or "temporarily unavailable" in refused["text"]
    assert_idle(lonely)
    job = lonely.jobs()["one"]
    assert (job["state"], job["attempt"]) == ("queued", 0)
    assert len(events_of(lonely, "start_refused")) == 1
    assert lonely.log.count("start_refused") == 1
    assert not (lonely.folder / "ledger").exists()

    limit_processes(lonely, None)
    lonely.ctl("wait", "main")
    assert (lonely.folder / "ledger").read_text() == "one\ntwo\n"
    assert {attempt["attempt"] for attempt in lonely.ctl("history", "main", "--json").json["attempts"]} == {1}
    assert len(lonely.ctl("history", "main", "--json").json["attempts"]) == 2


# ---- no more descriptors ---------------------------------------------------------------------------


class Line:
    """A connection that is open already."""

    def __init__(self, jobd: Jobd) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(str(jobd.socket))
        self._lines = self._socket.makefile("rw")

    def ask(self, method: str, **params: Any) -> Any:
        self._lines.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}) + "\n")
        self._lines.flush()
        answer = json.loads(self._lines.readline())
        assert "result" in answer, answer
        return answer["result"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def served(jobd: Jobd) -> Iterator[tuple[Jobd, Line]]:
    """A jobd and a connection to it. A job may have as many descriptors as its shim, if it has no limit of its own."""
    jobd.start("""
[dags.warm]
[jobs.first]
dag = "warm"
command = "true"
[jobs.one]
command = "echo one >> ledger"
limits = { open_files = 100 }
[jobs.two]
command = "true"
""")
    with contextlib.closing(Line(jobd)) as line:
        line.ask("ping")
        yield jobd, line


def test_without_descriptors_clients_wait_and_nothing_spins(served: tuple[Jobd, Line]) -> None:
    jobd, line = served
    take_descriptors(family(jobd)[0])
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(jobd.socket))
        waiting.sendall(b'{"jsonrpc":"2.0","id":7,"method":"ping","params":{}}\n')
        line.ask("ping")
        assert_idle(jobd)
        give_descriptors(jobd)
        waiting.settimeout(PATIENCE_S)
        assert json.loads(waiting.recv(65536))["id"] == 7


@pytest.mark.parametrize("left", range(4))
@pytest.mark.parametrize("warm", [False, True], ids=["no shim yet", "an idle shim"])
@pytest.mark.parametrize("who", ["jobd", "its helpers"])
def test_without_descriptors_jobs_start_or_wait_and_start_once_there_are_some(
    served: tuple[Jobd, Line], who: str, warm: bool, left: int
) -> None:
    jobd, line = served
    if warm:
        jobd.ctl("start", "warm", "--wait")
    daemon, *helpers = family(jobd)
    for process in [daemon] if who == "jobd" else helpers:
        take_descriptors(process, left)
    line.ask("start", names=["main"])
    await_starts_or_refusal(line)
    if not left:
        assert_idle(jobd)
    assert sum(event["kind"] == "start_refused" for event in line.ask("events", limit=1000)["events"]) <= 1

    give_descriptors(jobd)
    jobd.ctl("wait", "main")
    assert (jobd.folder / "ledger").read_text() == "one\n"
    assert [attempt["attempt"] for attempt in jobd.ctl("history", "main", "--json").json["attempts"]] == [1, 1]


def await_starts_or_refusal(line: Line) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        states = {job["state"] for job in line.ask("status", names=["main"])["jobs"]}
        if states == {"success"} or any(event["kind"] == "start_refused" for event in line.ask("events")["events"]):
            return
        assert states <= {"queued", "running", "success"}
    raise AssertionError("nothing starts, and nothing says why")


# ---- no room for logs ------------------------------------------------------------------------------

BIG_BYTES = 1_000_000
NO_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a file system")


@pytest.fixture
def log_disk(jobd: Jobd) -> Iterator[Path]:
    """128 KB for the logs."""
    logs = jobd.state / "logs"
    logs.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", logs], check=True)
    yield logs
    jobd.clean_up()
    subprocess.run(["umount", "-l", logs], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def attempts_of(jobd: Jobd, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = jobd.ctl("history", job, "--json").json["attempts"]
    return found


@NO_ROOT
def test_on_a_full_log_disk_text_is_dropped_and_counted_and_the_job_goes_on(jobd: Jobd, log_disk: Path) -> None:
    jobd.start(f"[jobs.chatty]\ncommand = 'head -c {BIG_BYTES} /dev/zero | tr \"\\\\0\" x; echo done >> ledger'\n")
    jobd.ctl("start", "--wait")
    assert (jobd.folder / "ledger").read_text() == "done\n"
    [attempt] = attempts_of(jobd, "chatty")
    assert (attempt["state"], attempt["exit_code"]) == ("success", 0)
    kept = (log_disk / attempt["log"]).stat().st_size
    assert 0 < kept < BIG_BYTES
    assert attempt["log_dropped_bytes"] == BIG_BYTES - kept


@NO_ROOT
def test_once_there_is_room_again_the_log_goes_on_and_says_how_much_is_missing(jobd: Jobd, log_disk: Path) -> None:
    for name in ("gate 1", "gate 2"):
        os.mkfifo(jobd.folder / name)
    jobd.start("""
[jobs.chatty]
command = "echo first; read x < 'gate 1'; echo lost; read x < 'gate 2'; echo last"
""")
    jobd.ctl("start")
    log = await_log(log_disk, "first\n")
    filler = fill(log_disk)
    with log.open("ab") as file:
        file.write(b"." * (4095 - log.stat().st_size % 4096) + b"\n")  # its last page has room, too
    padded_bytes = log.stat().st_size
    (jobd.folder / "gate 1").write_text("go\n")
    with (jobd.folder / "gate 2").open("w") as gate:  # it has said "lost", and is here
        await_taken(jobd)
        filler.unlink()
        gate.write("go\n")
    jobd.ctl("wait")
    [attempt] = attempts_of(jobd, "chatty")
    assert attempt["log_dropped_bytes"] == len("lost\n")
    rest = log.read_bytes()[padded_bytes:].decode()
    assert rest.startswith("last\n[jobd: 5 bytes dropped")


def await_log(logs: Path, text: str) -> Path:
    """The log that says this."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for log in logs.rglob("*.log"):
            if log.read_text() == text:
                return log
    raise AssertionError(f"no log says {text!r}")


def await_taken(jobd: Jobd) -> None:
    """Until the shim has taken all that the job has said, and has nothing to do."""
    shim = psutil.Process(jobd.jobs()["chatty"]["pid"]).parent()
    assert shim is not None
    [fifo] = (jobd.state / "fifos").iterdir()
    deadline = time.monotonic() + PATIENCE_S
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:
        while unread_bytes(reader) or shim.status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < deadline, "the job's output is not read"


def unread_bytes(reader: IO[bytes]) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(reader, termios.FIONREAD, count)
    return count[0]
