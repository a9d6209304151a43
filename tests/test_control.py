"""The control socket as a client meets it: real sockets, the real loop, a daemon that knows no jobs."""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor import protocol
from supervisor.control import Control, ControlError, Peer, Request, connection, rota, server
from supervisor.loop import Loop
from tests.fake_daemon import DEADLINE_S, Answer, FakeDaemon, replying, silent

PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'


def echo(daemon: FakeDaemon, request: Request) -> None:
    daemon.control.reply(request.token, {"params": request.params})


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "jobd.sock")


@pytest.fixture
def daemon(path: str) -> Iterator[FakeDaemon]:
    with FakeDaemon(path, {"echo": echo, "wait": silent}) as daemon:
        yield daemon


def descriptors() -> list[int]:
    return [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]


class Nc:
    """A client with no manners: bytes in, lines out."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(path)
        self._file = self.sock.makefile("rb")

    def send(self, data: bytes) -> Nc:
        self.sock.sendall(data)
        return self

    def line(self) -> dict[str, Any]:
        line = self._file.readline()
        assert line.endswith(b"\n"), f"closed in the middle of {line[:80]!r}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def at_end(self) -> bool:
        try:
            return self._file.read() == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._file.close()
        self.sock.close()


def call(method: str, call_id: object = 1, **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": call_id, "method": method, "params": params}).encode() + b"\n"


# ---- asking and answering ----------------------------------------------------------------------


def test_a_request_is_answered_under_its_id(daemon: FakeDaemon) -> None:
    nc = Nc(daemon.path).send(call("echo", "seven", names=["a"]))
    assert nc.line() == {"jsonrpc": "2.0", "id": "seven", "result": {"params": {"names": ["a"]}}}
    groups = frozenset({os.getgid(), *os.getgroups()})
    assert daemon.requests[0].peer == Peer(os.getpid(), os.getuid(), groups)


def test_requests_of_one_packet_and_of_many_are_told_apart(daemon: FakeDaemon) -> None:
    nc = Nc(daemon.path).send(call("echo", 1) + call("echo", 2) + call("echo", 3)[:10])
    assert [nc.line()["id"], nc.line()["id"]] == [1, 2]
    nc.send(call("echo", 3)[10:])
    assert nc.line()["id"] == 3


def test_a_client_that_closed_its_writing_side_gets_its_answers(daemon: FakeDaemon) -> None:
    daemon.answers["later"] = silent
    nc = Nc(daemon.path).send(call("echo", 1) + call("later", 2) + call("echo", 3).rstrip())
    nc.sock.shutdown(socket.SHUT_WR)
    assert [nc.line()["id"], nc.line()["id"]] == [1, 3]
    token = daemon.asked("later")[0].token
    daemon.call(lambda: daemon.control.reply(token, {"late": True}))
    assert nc.line()["result"] == {"late": True}
    assert nc.at_end()


def test_a_notification_is_done_and_not_answered(daemon: FakeDaemon) -> None:
    nc = Nc(daemon.path).send(b'{"jsonrpc":"2.0","method":"echo"}\n{"jsonrpc":"2.0","method":"nonsense"}\n' + PING)
    assert nc.line()["id"] == 1
    assert [request.method for request in daemon.requests] == ["echo", "nonsense", "ping"]


def test_a_reply_larger_than_any_buffer_comes_whole(daemon: FakeDaemon) -> None:
    text = "x" * (20 * connection.MAX_UNSENT_BYTES)
    daemon.answers["big"] = replying({"text": text})
    nc = Nc(daemon.path).send(call("big") + PING)
    assert nc.line()["result"]["text"] == text
    assert nc.line()["result"]["version"]


def test_a_reply_over_the_limit_becomes_an_error(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_REPLY_BYTES", 1000)
    daemon.answers["big"] = replying({"text": "x" * 1000})
    error = Nc(daemon.path).send(call("big")).line()["error"]
    assert error["code"] == 1
    assert error["data"]["kind"] == "too_large"


def test_a_thousand_requests_at_once_are_all_answered_in_order(daemon: FakeDaemon) -> None:
    nc = Nc(daemon.path).send(b"".join(call("echo", number) for number in range(1000)))
    assert [nc.line()["id"] for _ in range(1000)] == list(range(1000))


def test_of_a_flood_of_lines_a_few_are_looked_at_in_a_turn(daemon: FakeDaemon) -> None:
    turns = daemon.turns
    nc = Nc(daemon.path).send(b"x\n" * 4_000)
    nc.sock.shutdown(socket.SHUT_WR)
    errors = [nc.line()["error"]["code"] for _ in range(4_000)]
    assert set(errors) == {protocol.PARSE_ERROR}
    assert nc.at_end()
    assert daemon.turns - turns >= 4_000 / rota.MAX_LINES_PER_TURN


def test_when_time_is_up_one_line_is_looked_at_in_a_turn(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rota, "LOOKING_S", 0.0)
    turns = daemon.turns
    nc = Nc(daemon.path).send(b"x\n" * 200)
    assert {nc.line()["error"]["code"] for _ in range(200)} == {protocol.PARSE_ERROR}
    assert daemon.turns - turns >= 199


def test_all_that_was_read_counts_though_its_client_reads_no_answers(daemon: FakeDaemon) -> None:
    nc = Nc(daemon.path)
    nc.sock.shutdown(socket.SHUT_RD)
    nc.send(b"".join(call("echo", number) for number in range(50)) + b'{"half')
    daemon.wait_for(lambda: len(daemon.requests) == 50)
    daemon.wait_for(lambda: not daemon.control._connections)
    assert daemon.gone == []


def test_who_reads_no_answers_is_not_waited_for(daemon: FakeDaemon) -> None:
    nc = Nc(daemon.path)
    nc.sock.shutdown(socket.SHUT_RD)
    nc.send(call("wait") + call("echo"))
    daemon.wait_for(lambda: daemon.asked("echo"))
    daemon.wait_for(lambda: daemon.gone == [daemon.asked("wait")[0].token])


def test_requests_beyond_the_open_ones_wait_until_one_is_answered(daemon: FakeDaemon) -> None:
    limit = connection.MAX_OPEN_REQUESTS
    nc = Nc(daemon.path).send(b"".join(call("wait", number) for number in range(limit + 5)) + PING)
    daemon.wait_for(lambda: len(daemon.requests) >= limit)
    assert Nc(daemon.path).send(PING).line()["id"] == 1  # others are served meanwhile
    assert len(daemon.asked("wait")) == limit
    for request in daemon.asked("wait")[:6]:
        daemon.call(lambda token=request.token: daemon.control.reply(token, {}))  # type: ignore[misc]
    assert [nc.line()["id"] for _ in range(7)] == [0, 1, 2, 3, 4, 5, 1]


# ---- what is wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"garbage", -32700),
        (b"", -32700),
        (b"\x00\xff\xfe", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":NaN}}', -32700),
        (b"[" * 1000 + b"]" * 1000, -32700),
        (b'{"a":' * 1000, -32700),
        (b"[" + PING.strip() + b"]", -32600),
        (b"{}", -32600),
        (call("statsu").strip(), -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}', -32602),
    ],
)
def test_a_bad_line_gets_an_error_and_the_connection_stays_usable(daemon: FakeDaemon, line: bytes, code: int) -> None:
    nc = Nc(daemon.path).send(line + b"\n" + PING)
    error = nc.line()["error"]
    assert error["code"] == code
    assert error["message"]
    assert set(error["data"]) == {"kind", "hint"}
    assert nc.line()["result"]["version"] == "0.1.0"


def test_ten_megabytes_without_a_newline_get_an_error_line_and_the_door(daemon: FakeDaemon) -> None:
    nc = Nc(daemon.path)
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        nc.send(b"x" * 10_000_000)
    assert nc.line()["error"]["data"]["kind"] == "too_long"
    assert nc.at_end()
    assert Nc(daemon.path).send(PING).line()["result"]


def test_the_longest_request_is_taken_and_one_byte_more_is_not(daemon: FakeDaemon) -> None:
    line = call("echo", x="").strip()
    line = line.replace(b'""', b'"' + b"y" * (protocol.MAX_REQUEST_BYTES - len(line)) + b'"')
    assert len(Nc(daemon.path).send(line + b"\n").line()["result"]["params"]["x"]) > 60_000
    longer = Nc(daemon.path).send(line.replace(b"y", b"yy", 1) + b"\n")
    assert longer.line()["error"]["data"]["kind"] == "too_long"
    assert longer.at_end()


@pytest.mark.parametrize("first", [b"", b'{"half', PING + b'{"half'])
def test_who_does_not_finish_a_line_is_closed(
    daemon: FakeDaemon, first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINE_TIMEOUT_S", 0.05)
    nc = Nc(daemon.path).send(first)
    if first.startswith(PING):
        assert nc.line()["result"]
    assert nc.line()["error"]["data"]["kind"] == "too_slow"
    assert nc.at_end()


def test_an_idle_client_that_was_heard_may_stay(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINE_TIMEOUT_S", 0.05)
    idle = Nc(daemon.path).send(PING)
    assert idle.line()["result"]
    assert Nc(daemon.path).line()["error"]["data"]["kind"] == "too_slow"  # that long has passed
    assert idle.send(PING).line()["result"]


# ---- crowds and slow readers -------------------------------------------------------------------


def test_one_client_too_many_is_told_busy_and_a_freed_place_is_given_again(daemon: FakeDaemon) -> None:
    crowd = [Nc(daemon.path).send(PING) for _ in range(protocol.MAX_CONNECTIONS)]
    assert all(nc.line()["result"] for nc in crowd)
    late = Nc(daemon.path)
    assert late.line()["error"]["data"]["kind"] == "busy"
    assert late.at_end()
    crowd.pop().close()

    def served() -> bool:
        return "result" in Nc(daemon.path).send(PING).line()

    daemon.wait_for(served)
    for nc in crowd:
        nc.close()


def test_clients_leave_most_descriptors_to_starts(path: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    try:
        with FakeDaemon(path) as daemon:
            crowd = [Nc(daemon.path).send(PING) for _ in range(25)]
            assert all(nc.line()["result"] for nc in crowd)
            assert Nc(daemon.path).line()["error"]["message"] == "the daemon serves 25 connections already"
            for nc in crowd:
                nc.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_strangers_share_a_few_places(path: str) -> None:
    loop = Loop()
    strangers = [True] * (server.MAX_STRANGERS + 1) + [False]
    control = Control(
        path,
        loop,
        lambda request: control.reply(request.token, {}),
        lambda _token: None,
        is_stranger=lambda _peer: strangers.pop(0),
    )
    crowd = [Nc(path).send(PING) for _ in strangers]
    while strangers or not all(select.select([nc.sock], [], [], 0)[0] for nc in crowd):
        loop.turn()
    *served, turned_away, known = [nc.line() for nc in crowd]
    assert all(answer["result"] == {} for answer in (*served, known))
    assert turned_away["error"]["data"]["kind"] == "busy"
    control.close()
    loop.close()


def subscribe(daemon: FakeDaemon, request: Request) -> None:
    daemon.control.reply(request.token, {"since": 0}, more=True)


def test_a_stream_follows_its_reply_until_it_ends(daemon: FakeDaemon) -> None:
    daemon.answers["subscribe"] = subscribe
    nc = Nc(daemon.path).send(call("subscribe"))
    assert nc.line()["result"] == {"since": 0}
    token = daemon.requests[0].token
    daemon.notify(token, "event", {"id": 1})
    assert nc.line() == {"jsonrpc": "2.0", "method": "event", "params": {"id": 1}}
    daemon.call(lambda: daemon.control.end(token))
    daemon.notify(token, "event", {"id": 2})
    assert nc.send(PING).line()["id"] == 1
    assert daemon.gone == []


def test_a_subscriber_that_does_not_read_is_told_lagged_and_closed(daemon: FakeDaemon) -> None:
    daemon.answers["subscribe"] = subscribe
    nc = Nc(daemon.path).send(call("subscribe"))
    assert nc.line()["result"]
    token = daemon.requests[0].token

    def flood() -> None:
        for number in range(20_000):
            daemon.control.notify(token, "event", {"id": number, "text": "x" * 100})

    daemon.call(flood)
    daemon.wait_for(lambda: not daemon._calls)
    ids = []
    while (message := nc.line())["method"] == "event":
        ids.append(message["params"]["id"])
    assert message["method"] == "lagged"
    assert ids == list(range(len(ids)))  # whole lines, none left out before the end
    assert len(ids) < 20_000
    assert nc.at_end()
    daemon.wait_for(lambda: daemon.gone == [token])


def looked_up(size: int) -> Answer:
    """A question with an answer of so many bytes."""

    def answer(daemon: FakeDaemon, request: Request) -> None:
        if daemon.control.is_worthwhile(request.token):
            daemon.control.reply(request.token, {"text": "x" * size})

    return answer


def kinds(nc: Nc, count: int) -> list[str]:
    """Of so many answers: text, or the kind of the error."""
    answers = [nc.line() for _ in range(count)]
    return ["text" if "result" in answer else answer["error"]["data"]["kind"] for answer in answers]


def test_who_does_not_read_is_refused_further_answers(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_UNSENT_BYTES", 10 * server.MAX_UNREAD_BYTES)
    daemon.answers |= {"big": looked_up(server.MAX_UNREAD_BYTES + 1_000_000), "small": looked_up(1)}
    nc = Nc(daemon.path).send(call("big") + call("small") + call("big") + call("echo"))
    daemon.wait_for(lambda: daemon.asked("echo"))
    assert Nc(daemon.path).send(call("small")).line()["result"]  # others are not concerned
    assert kinds(nc, 4) == ["text", "busy", "busy", "text"]  # what changes something is always answered
    assert kinds(nc.send(call("big")), 1) == ["text"]


def test_with_much_unread_by_all_others_get_small_answers_only(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_UNREAD_BY_ALL_BYTES", 3_000_000)
    daemon.answers |= {"big": looked_up(1_000_000), "small": looked_up(1)}
    deaf = [Nc(daemon.path).send(call("big")) for _ in range(5)]
    daemon.wait_for(lambda: len(daemon.asked("big")) == 5)
    other = Nc(daemon.path).send(call("small") + call("big") + call("small"))
    assert kinds(other, 3) == ["text", "busy", "busy"]  # the last one was not even looked up
    assert kinds(Nc(daemon.path).send(call("small")), 1) == ["text"]
    assert kinds(deaf.pop(0), 1) == ["text"]
    for nc in deaf:
        nc.close()
    daemon.wait_for(lambda: len(daemon.control._connections) == 1)
    assert kinds(other.send(call("big")), 1) == ["text"]


def test_the_question_of_a_client_that_left_is_not_worthwhile(daemon: FakeDaemon) -> None:
    nc = Nc(daemon.path).send(call("wait"))
    daemon.wait_for(lambda: daemon.asked("wait"))
    token = daemon.requests[0].token
    assert daemon.control.is_open(token)
    nc.close()
    daemon.wait_for(lambda: daemon.gone == [token])
    assert not daemon.control.is_open(token)
    assert not daemon.control.is_worthwhile(token)
    assert not daemon.control.has_room(token, lambda: None)


def test_a_stream_that_waits_for_room_comes_whole_however_slowly_it_is_read(daemon: FakeDaemon) -> None:
    count = 500
    sent: list[int] = []

    def flow(daemon: FakeDaemon, request: Request) -> None:
        daemon.control.reply(request.token, {}, more=True)
        send_more(request.token)

    def send_more(token: int) -> None:
        while len(sent) < count and daemon.control.has_room(token, lambda: send_more(token)):
            daemon.control.notify(token, "log", {"id": len(sent), "text": "x" * 10_000})
            sent.append(len(sent))

    daemon.answers["flow"] = flow
    nc = Nc(daemon.path).send(call("flow"))
    assert nc.line()["result"] == {}
    turns = daemon.turns
    time.sleep(0.1)  # the time in which it must not spin
    assert len(sent) < count
    assert daemon.turns - turns < 20
    assert [nc.line()["params"]["id"] for _ in range(count)] == list(range(count))


def test_who_never_reads_is_closed_after_a_while(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.05)
    daemon.answers["big"] = replying({"text": "x" * 5_000_000})
    nc = Nc(daemon.path).send(call("big") + call("wait"))
    daemon.wait_for(lambda: daemon.asked("big"))
    daemon.wait_for(lambda: not daemon.control._connections)
    with pytest.raises(AssertionError, match="closed in the middle"):
        nc.line()


def test_descriptors_run_out_and_accepting_rests_without_spinning(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ACCEPT_PAUSE_S", 0.05)
    assert Nc(daemon.path).send(PING).line()["result"]
    clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(descriptors())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, before[1]))
    spare = []
    try:
        while True:  # take every gap below the limit
            try:
                spare.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        turns = daemon.turns
        for client in clients:
            client.connect(daemon.path)
        time.sleep(0.3)  # the time in which it must not spin
        assert daemon.turns - turns < 20
    finally:
        for fd in spare:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for client in clients:
        client.settimeout(DEADLINE_S)
        client.sendall(PING)
        assert b"result" in client.recv(1000)
        client.close()


# ---- clients that leave ------------------------------------------------------------------------


@pytest.mark.parametrize("half_closed_first", [False, True])
def test_the_open_requests_of_a_client_that_left_are_reported(daemon: FakeDaemon, half_closed_first: bool) -> None:
    nc = Nc(daemon.path).send(call("wait", 1) + call("wait", 2))
    if half_closed_first:
        nc.sock.shutdown(socket.SHUT_WR)
    daemon.wait_for(lambda: len(daemon.asked("wait")) == 2)
    nc.close()
    daemon.wait_for(lambda: sorted(daemon.gone) == [request.token for request in daemon.requests])
    daemon.call(lambda: daemon.control.reply(daemon.requests[0].token, {}))  # too late, and no harm
    assert Nc(daemon.path).send(PING).line()["result"]


def test_a_client_that_left_while_its_requests_had_to_wait_is_noticed(daemon: FakeDaemon) -> None:
    nc = Nc(daemon.path).send(call("wait") * (connection.MAX_OPEN_REQUESTS + 1))
    daemon.wait_for(lambda: len(daemon.requests) == connection.MAX_OPEN_REQUESTS)
    nc.close()
    daemon.wait_for(lambda: len(daemon.gone) == connection.MAX_OPEN_REQUESTS)


def test_a_request_counts_even_if_its_client_leaves_at_once(daemon: FakeDaemon) -> None:
    Nc(daemon.path).send(call("echo")).close()
    daemon.wait_for(lambda: daemon.asked("echo"))
    daemon.wait_for(lambda: not daemon.control._connections)
    assert daemon.gone == []


def test_descriptors_are_given_back(daemon: FakeDaemon) -> None:
    before = len(descriptors())
    for number in range(50):
        nc = Nc(daemon.path).send([PING, b"x\n", call("wait"), b"half"][number % 4])
        nc.close()
    daemon.wait_for(lambda: not daemon.control._connections)
    daemon.wait_for(lambda: len(descriptors()) <= before)


def test_an_idle_daemon_sleeps(daemon: FakeDaemon) -> None:
    clients = [Nc(daemon.path).send(PING), Nc(daemon.path).send(call("wait"))]
    assert clients[0].line()["result"]
    half_closed = Nc(daemon.path).send(call("wait"))
    half_closed.sock.shutdown(socket.SHUT_WR)
    daemon.wait_for(lambda: len(daemon.asked("wait")) == 2)
    time.sleep(0.05)  # let the last turn end
    turns = daemon.turns
    time.sleep(0.2)
    assert daemon.turns == turns
    for nc in (*clients, half_closed):
        nc.close()


# ---- the socket file ---------------------------------------------------------------------------


def bind(path: str, mode: int = 0o660) -> tuple[Loop, Control]:
    loop = Loop()
    return loop, Control(path, loop, lambda _request: None, lambda _token: None, mode)


def test_the_socket_has_its_mode_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "run" / "jobd" / "jobd.sock"
    loop, control = bind(str(path), 0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    control.close()
    assert not path.exists()
    loop.close()


def test_the_mode_can_change_and_only_of_the_own_socket(path: str) -> None:
    loop, control = bind(path, 0o600)
    control.set_mode(0o666)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o666
    Path(path).rename(path + ".moved")
    Path(path).touch(0o600)
    control.set_mode(0o660)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    control.close()
    loop.close()


def test_a_socket_that_nobody_answers_at_is_replaced(path: str) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()
    with FakeDaemon(path):
        assert Nc(path).send(PING).line()["result"]


def test_a_socket_that_answers_is_left_alone(daemon: FakeDaemon) -> None:
    with pytest.raises(ControlError, match="another process answers"):
        bind(daemon.path)
    assert Nc(daemon.path).send(PING).line()["result"]


def plant_file(path: Path) -> None:
    path.write_text("precious")


def plant_link(path: Path) -> None:
    path.symlink_to(path.parent / "precious")


@pytest.mark.parametrize("plant", [plant_file, plant_link])
def test_what_is_no_socket_is_left_alone(path: str, plant: Callable[[Path], None]) -> None:
    plant(Path(path))
    with pytest.raises(ControlError, match="is no socket"):
        bind(path)
    assert os.path.lexists(path)


def test_a_path_that_is_too_long_says_so(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="at most 107 bytes"):
        bind(str(tmp_path / ("x" * 110)))


def test_closing_leaves_the_socket_of_another_alone(path: str) -> None:
    loop, control = bind(path)
    Path(path).unlink()
    with FakeDaemon(path):
        control.close()
        loop.close()
        assert Nc(path).send(PING).line()["result"]
