"""Whatever clients send, in whatever pieces and however they leave: others are served, and nothing is left behind.

JOBD_FUZZ_EXAMPLES=5000 in the environment makes it look longer.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Literal

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor import api, protocol
from supervisor.control import Request
from tests.end_to_end.conftest import Jobd
from tests.fake_daemon import DEADLINE_S, FakeDaemon, silent

EXAMPLES = int(os.environ.get("JOBD_FUZZ_EXAMPLES", "60"))
few = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

#: Methods that are answered later, or never.
MAY_TAKE_LONG = (b"wait", b"subscribe", b"logs")
Leaving = Literal["close", "half close", "wait a little"]
PING = b'{"jsonrpc":"2.0","id":"ping","method":"ping"}\n'


# ---- what is sent --------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),  # NaN and infinity too, which are no JSON
    st.text(max_size=20),
    st.sampled_from(["a", "b", "main", "nobody", "", "x" * 300, "\ud800", "../../etc", "main@2001-01-01T00:00"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)

#: Never shutdown: there is only one daemon to send it to.
METHODS = [name for name in api.METHODS if name != "shutdown"]
PARAMS = sorted(
    {field for method in api.METHODS.values() for field in method.shape.__dataclass_fields__} | {"request_id"}
)

sensible_params = st.fixed_dictionaries(
    {},
    optional={
        "names": st.lists(st.sampled_from(["a", "b", "main", "nobody"]), max_size=2),
        "job": st.sampled_from(["a", "b", "nobody"]),
        "dry_run": st.booleans(),
        "request_id": st.sampled_from(["one", "two"]),
        "limit": st.integers(1, 5),
        "timeout": st.floats(0, 0.01),
        "outcome": st.sampled_from(["success", "failed", "data"]),
        "follow": st.booleans(),
        "since": st.integers(0, 10),
    },
)
requests = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": st.sampled_from(METHODS)},
    optional={"id": st.integers() | st.text(max_size=5), "params": sensible_params},
)
wrong_requests = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0") | values, "method": st.sampled_from(METHODS) | values},
    optional={
        "id": values,
        "params": values | st.dictionaries(st.sampled_from(PARAMS), values, max_size=4),
        "request_id": values,
    },
)


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A request with some bytes of it cut out, doubled or replaced."""
    line = bytearray(encode(draw(requests)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(line)))
        end = draw(st.integers(start, min(len(line), start + 8)))
        line[start:end] = draw(st.one_of(st.binary(max_size=4), st.just(bytes(line[start:end]) * 2)))
    return bytes(line)


lines = st.one_of(
    st.binary(max_size=50),
    values.map(encode),
    requests.map(encode),
    wrong_requests.map(encode),
    mutated(),
    st.sampled_from([b"", b"[" * 1000, b'{"a":' * 500, b"x" * (protocol.MAX_REQUEST_BYTES + 2)]),
)


@st.composite
def in_pieces(draw: st.DrawFn) -> list[bytes]:
    """Some lines in one stream of bytes, cut anywhere; the last newline may be missing."""
    stream = b"\n".join(draw(st.lists(lines, max_size=6))) + draw(st.sampled_from([b"\n", b""]))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    return [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]


# ---- how it is sent ------------------------------------------------------------------------------


def send(path: str, pieces: list[bytes], leaving: Leaving) -> bytes:
    """Send and leave; returns what came back, as far as that was read."""
    answer = b""
    sent = b"".join(pieces)
    is_brief = leaving == "wait a little" or any(word in sent for word in MAY_TAKE_LONG)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect(path)
        try:
            for piece in pieces:
                sock.sendall(piece)
            if leaving == "close":
                return b""
            if leaving == "half close":
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # thrown out; why is read next
        sock.settimeout(0.01 if is_brief else DEADLINE_S)
        try:
            while data := sock.recv(1 << 16):
                answer += data
        except TimeoutError:
            assert is_brief, "the daemon neither answers nor closes"
        except ConnectionResetError:
            pass
    return answer


def check_answers(answer: bytes, pieces: list[bytes]) -> None:
    """Each line of it is a reply of JSON-RPC, and there are no more of them than lines were sent."""
    *replies, _rest = answer.split(b"\n")
    for line in replies:
        reply = json.loads(line)
        assert reply["jsonrpc"] == "2.0"
        if "error" in reply:
            assert isinstance(reply["error"]["code"], int)
            assert reply["error"]["message"]
            assert reply["error"]["code"] != protocol.INTERNAL_ERROR, reply
        else:
            assert "result" in reply or "method" in reply
    replies = [line for line in replies if b'"method":' not in line[:30]]  # those are streams
    assert len(replies) <= b"".join(pieces).count(b"\n") + 1


def ping(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect(path)
        sock.sendall(PING)
        assert json.loads(sock.makefile("rb").readline())["result"]["version"]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the daemon did not get there"
        time.sleep(0.002)


leavings: st.SearchStrategy[Leaving] = st.sampled_from(["close", "half close", "wait a little"])


# ---- the socket alone ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeDaemon]:
    def stream(daemon: FakeDaemon, request: Request) -> None:
        daemon.control.reply(request.token, {"since": 0}, more=True)
        daemon.control.notify(request.token, "event", {"id": 1})

    def echo(daemon: FakeDaemon, request: Request) -> None:
        daemon.control.reply(request.token, {"params": request.params})

    answers = {"status": echo, "subscribe": stream, "wait": silent}
    with FakeDaemon(str(tmp_path_factory.mktemp("fuzz") / "s"), answers) as daemon:
        yield daemon


@few
@given(pieces=in_pieces(), leaving=leavings)
def test_the_socket_survives_anything(daemon: FakeDaemon, pieces: list[bytes], leaving: Leaving) -> None:
    check_answers(send(daemon.path, pieces, leaving), pieces)
    ping(daemon.path)
    wait_for(lambda: not daemon.control._connections)
    wait_for(lambda: not daemon.control._open)
    wait_for(lambda: not daemon.control._rota._waiting)
    asked = {request.token for request in daemon.requests if request.method in ("wait", "subscribe")}
    wait_for(lambda: set(daemon.gone) == asked)


# ---- the whole daemon ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobd]:
    daemon = Jobd(tmp_path_factory.mktemp("fuzz"))
    daemon.start("[jobs.a]\ncommand = 'exit 0'\n[jobs.b]\ncommand = 'exit 1'\nneeds = ['a']\n")
    yield daemon
    daemon.clean_up()


def client_sockets(jobd: Jobd) -> int:
    """Of the daemon's: the listening one is always there."""
    assert jobd.process
    sockets = psutil.Process(jobd.process.pid).net_connections("unix")
    return sum(str(each.laddr) == str(jobd.socket) for each in sockets) - 1


@few
@given(pieces=in_pieces(), leaving=leavings)
def test_the_daemon_survives_anything(jobd: Jobd, pieces: list[bytes], leaving: Leaving) -> None:
    check_answers(send(str(jobd.socket), pieces, leaving), pieces)
    ping(str(jobd.socket))
    wait_for(lambda: client_sockets(jobd) == 0)
    assert "bug" not in jobd.log
    assert "Traceback" not in jobd.log


def test_after_all_that_jobs_run(jobd: Jobd) -> None:
    jobd.ctl("release", "main", "a", "b")
    jobd.ctl("restart", "a", "--wait")


@pytest.mark.parametrize("count", [api.MAX_NAMES, api.MAX_NAMES + 1])
def test_as_many_names_as_fit_into_a_request(jobd: Jobd, count: int) -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": "history", "params": {"names": ["b"] * count}}
    answer = json.loads(send(str(jobd.socket), [encode(request) + b"\n"], "half close"))
    assert ("result" if count == api.MAX_NAMES else "error") in answer
    assert "bug" not in jobd.log
