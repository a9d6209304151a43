"""Crowds: a thousand connections, senders of garbage, readers that do not read, and few descriptors."""

from __future__ import annotations

import json
import os
import random
import resource
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.end_to_end.conftest import PATIENCE_S, Jobd

IDLE, GARBAGE, SERVED_AT_LEAST = 1_000, 50, 250
#: How much larger the daemon may be under load, for all that it may hold for each client.
MEMORY_RATIO = 1.5
PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'

LAYERS, WIDTH = 8, 10
DAG = "\n".join(
    f"[jobs.j{layer}-{place}]\ncommand = 'exit 0'\n"
    + (f"needs = ['j{layer - 1}-{place}', 'j{layer - 1}-{(place + 1) % WIDTH}']\n" if layer else "")
    for layer in range(LAYERS)
    for place in range(WIDTH)
)


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    """For this process, which has both ends of nothing but many of one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * (IDLE + GARBAGE) + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} descriptors, may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Caller:
    """One connection that asks and reads the answers."""

    def __init__(self, jobd: Jobd) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(jobd.socket))  # waits for its place in the queue, as a timeout would not
        self.sock.settimeout(PATIENCE_S)
        self._answers = self.sock.makefile("rb")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            self.sock.sendall(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            pass  # turned away; why is read next
        answer: dict[str, Any] = json.loads(self._answers.readline())
        return answer

    def result(self, method: str, **params: Any) -> dict[str, Any]:
        result: dict[str, Any] = self.ask(method, **params)["result"]
        return result

    def is_served(self) -> bool:
        answer = self.ask("ping")
        assert "result" in answer or answer["error"]["data"]["kind"] == "busy"
        return "result" in answer

    def close(self) -> None:
        self._answers.close()
        self.sock.close()


class GarbageSenders(threading.Thread):
    """Clients that send what is no request as fast as it is taken, and come again when they are thrown out."""

    def __init__(self, path: str, count: int) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._dice = random.Random(count)
        self._selector = selectors.DefaultSelector()
        self.ending = False
        self.sent_bytes = 0
        for _ in range(count):
            self._connect()

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self._path)
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def run(self) -> None:
        while not self.ending:
            for key, mask in self._selector.select(0.1):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                try:
                    if mask & selectors.EVENT_READ and not sock.recv(1 << 16):
                        raise ConnectionResetError
                    if mask & selectors.EVENT_WRITE:
                        self.sent_bytes += sock.send(self._garbage())
                except BlockingIOError:
                    pass
                except OSError:
                    self._selector.unregister(sock)
                    sock.close()
                    self._connect()
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _garbage(self) -> bytes:
        kind = self._dice.randrange(20)
        if kind == 0:
            return b"x" * 70_000  # too long
        if kind < 10:
            return self._dice.randbytes(self._dice.randrange(1, 200)) + b"\n"
        if kind < 15:
            return b'{"jsonrpc":"2.0","id":1,"method":"start","params":{"names":[' + b"[" * 40 + b"\n"
        return b'{"jsonrpc":"2.0","id":1,"method":"hack","params":{"a":1}}\n' * 10


class Pinger(threading.Thread):
    """Asks again as soon as it was answered."""

    def __init__(self, jobd: Jobd) -> None:
        super().__init__(daemon=True)
        self._caller = Caller(jobd)
        self._ending = threading.Event()
        self.answers: list[dict[str, Any]] = []

    def run(self) -> None:
        while not self._ending.is_set():
            self.answers.append(self._caller.ask("ping"))

    def end(self) -> None:
        self._ending.set()
        self.join()
        self._caller.close()


def rss_bytes(jobd: Jobd) -> int:
    assert jobd.process
    return int(psutil.Process(jobd.process.pid).memory_info().rss)


def connections(jobd: Jobd) -> int:
    """How many the daemon has taken; one socket of that path listens."""
    assert jobd.process
    sockets = psutil.Process(jobd.process.pid).net_connections("unix")
    return sum(str(each.laddr) == str(jobd.socket) for each in sockets) - 1


def run_dag(caller: Caller) -> None:
    caller.result("restart", names=["main"])
    ended = caller.result("wait", names=["main"])
    assert [run["state"] for run in ended["runs"]] == ["success"]
    jobs = caller.result("status", names=["main"])["jobs"]
    assert len(jobs) == LAYERS * WIDTH
    assert {(job["state"], job["attempt"]) for job in jobs} == {("success", 1)}


def test_a_thousand_connections_garbage_and_a_deaf_subscriber_while_a_dag_runs(jobd: Jobd) -> None:
    jobd.start(DAG)
    with ExitStack() as stack:
        operator = Caller(jobd)
        stack.callback(operator.close)
        run_dag(operator)
        before = rss_bytes(jobd)

        pinger = Pinger(jobd)
        pinger.start()
        stack.callback(pinger.end)
        deaf = Caller(jobd)
        stack.callback(deaf.close)
        assert deaf.ask("subscribe", since=0)["result"]
        garbage = GarbageSenders(str(jobd.socket), GARBAGE)
        garbage.start()
        stack.callback(garbage.join)
        stack.callback(lambda: setattr(garbage, "ending", True))
        crowd = [Caller(jobd) for _ in range(IDLE)]
        for each in crowd:
            stack.callback(each.close)
        served = sum(each.is_served() for each in crowd)
        assert SERVED_AT_LEAST - GARBAGE - 3 <= served < IDLE
        assert connections(jobd) >= SERVED_AT_LEAST

        run_dag(operator)
        assert garbage.sent_bytes > 1_000_000
        assert rss_bytes(jobd) < MEMORY_RATIO * before
    assert len(pinger.answers) > 100
    assert all("result" in answer for answer in pinger.answers)
    jobd.ctl("ping")
    assert "Traceback" not in jobd.log


# ---- logs ----------------------------------------------------------------------------------------

#: Bytes of zeros: six times as many as JSON, and nearly all that an answer holds at most.
ZEROS = 1_000_000
LOGS = f"""
[jobs.zeros]
command = "head -c {ZEROS} /dev/zero"
[jobs.flood]
command = "read go < go; yes 0123456789 | head -c 5500000"
"""


def test_whoever_asks_for_logs_and_does_not_read_is_refused_and_memory_stays_bounded(jobd: Jobd) -> None:
    jobd.start(LOGS)
    jobd.ctl("start", "zeros", "--wait")
    line = b'{"jsonrpc":"2.0","id":1,"method":"logs","params":{"job":"zeros","lines":1}}\n'
    with ExitStack() as stack:
        crowd = [Caller(jobd) for _ in range(30)]
        for caller in crowd:
            stack.callback(caller.close)
            caller.sock.sendall(line * 64)
        operator = Caller(jobd)
        stack.callback(operator.close)
        largest = 0
        for _ in range(100):
            assert operator.ask("ping")["result"]
            largest = max(largest, rss_bytes(jobd))
        assert largest < 400_000_000
        assert len(json.loads(crowd[0]._answers.readline())["result"]["text"]) == ZEROS
        refused = [json.loads(crowd[-1]._answers.readline())["error"]["data"]["kind"] for _ in range(64)]
    assert set(refused) == {"busy"}


def test_a_log_that_grows_fast_is_followed_to_its_end(jobd: Jobd) -> None:
    os.mkfifo(jobd.folder / "go")
    jobd.start(LOGS.replace("< go", f"< {jobd.folder / 'go'}"))
    jobd.ctl("start", "flood")
    follower = Caller(jobd)
    pinger = Pinger(jobd)
    pinger.start()
    assert follower.ask("logs", job="flood", follow=True)["result"]["text"] == ""
    (jobd.folder / "go").write_text("go\n")
    jobd.ctl("wait", "flood")  # nobody reads so far
    text = ""
    while (message := json.loads(follower._answers.readline()))["method"] == "log":
        text += message["params"]["text"]
    assert message == {"jsonrpc": "2.0", "method": "log_end", "params": {"state": "success"}}
    assert text.count("0123456789\n") == len(text) // 11
    assert len(text) == 5_500_000
    pinger.end()
    follower.close()
    assert all("result" in answer for answer in pinger.answers)


# ---- descriptors ---------------------------------------------------------------------------------


def start_with_descriptors(jobd: Jobd, count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        jobd.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def cpu_s(jobd: Jobd) -> float:
    assert jobd.process
    times = psutil.Process(jobd.process.pid).cpu_times()
    return float(times.user + times.system)


def test_clients_cannot_take_the_descriptors_that_starts_need(jobd: Jobd) -> None:
    jobd.configure(DAG)
    start_with_descriptors(jobd, 128)
    operator = Caller(jobd)
    crowd = [Caller(jobd) for _ in range(200)]
    assert sum(caller.is_served() for caller in crowd) == 128 // 4 - 1
    run_dag(operator)
    for caller in (operator, *crowd):
        caller.close()
    jobd.ctl("ping")


@contextmanager
def no_descriptor_left(jobd: Jobd) -> Iterator[None]:
    """The daemon keeps those that it has, and gets no further one."""
    assert jobd.process
    pid = jobd.process.pid
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    lowest_free = next(number for number in range(len(used) + 1) if number not in used)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_without_a_descriptor_clients_wait_and_the_daemon_does_not_spin(jobd: Jobd) -> None:
    jobd.start(DAG)
    operator = Caller(jobd)
    run_dag(operator)
    with no_descriptor_left(jobd):
        waiting = [Caller(jobd) for _ in range(20)]  # the kernel connects them, the daemon cannot take them
        for caller in waiting:
            caller.sock.sendall(PING)
        before_s = cpu_s(jobd)
        time.sleep(2.0)  # the time in which it must not spin
        assert cpu_s(jobd) - before_s < 1.0
        assert operator.ask("ping")["result"]
        for caller in waiting:
            caller.sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                caller.sock.recv(1)
    for caller in waiting:
        caller.sock.settimeout(PATIENCE_S)
        assert b"version" in caller.sock.recv(1000)
        caller.close()
    run_dag(operator)
    operator.close()
