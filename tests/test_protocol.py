"""The lines of the socket: what is taken, what is refused and how, and that encodings come back whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import protocol


def refused(line: bytes) -> protocol.ProtocolError:
    with pytest.raises(protocol.ProtocolError) as caught:
        protocol.decode_call(line)
    return caught.value


def request_line(**fields: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"} | fields).encode()


def test_a_request_is_decoded() -> None:
    call = protocol.decode_call(request_line(id="a", method="start", params={"names": ["nightly"]}))
    assert (call.call_id, call.expects_reply, call.method) == ("a", True, "start")
    assert call.params == {"names": ["nightly"]}
    assert call.request_id is None


def test_without_an_id_no_reply_is_expected_and_null_is_an_id() -> None:
    assert not protocol.decode_call(b'{"jsonrpc":"2.0","method":"ping"}').expects_reply
    assert protocol.decode_call(request_line(id=None)).expects_reply


@pytest.mark.parametrize("line", [request_line(request_id="r1"), request_line(params={"request_id": "r1"})])
def test_request_id_is_taken_from_the_params_or_beside_them(line: bytes) -> None:
    call = protocol.decode_call(line)
    assert call.request_id == "r1"
    assert call.params == {}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"   ",
        b"hello",
        b"\xff\xfe",
        b'{"jsonrpc":"2.0"',
        b'{"jsonrpc":"2.0","method":"ping","params":{"x":NaN}}',
        b'{"jsonrpc":"2.0","method":"ping","params":{"x":-Infinity}}',
        b'{"jsonrpc":"2.0","method":"ping","params":{"x":1e999}}',
        b'{"jsonrpc":"2.0","method":"ping","params":{"x":"\\ud800"}}',
        b'{"jsonrpc":"2.0","method":"ping","params":{"x":' + b"9" * 5000 + b"}}",
        b"[" * 1000 + b"]" * 1000,
        b"[" * 60_000,
        b'{"a":' * 1000 + b"1" + b"}" * 1000,
    ],
)
def test_what_is_not_json_is_a_parse_error(line: bytes) -> None:
    error = refused(line)
    assert (error.code, error.kind) == (-32700, "parse_error")
    assert error.message
    assert error.hint


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    text = '[{"\\' * 100
    assert protocol.decode_call(request_line(params={"reason": text})).params == {"reason": text}


def test_nesting_up_to_the_limit_is_fine() -> None:
    inner = protocol.MAX_DEPTH - 2  # the request and its params are two
    good = b'{"jsonrpc":"2.0","method":"ping","params":{"x":' + b"[" * inner + b"]" * inner + b"}}"
    assert protocol.decode_call(good).method == "ping"
    assert refused(good.replace(b"[]", b"[[]]")).kind == "parse_error"


def nests_deeper(line: bytes, limit: int) -> bool:
    """Byte by byte, as anyone would write it down."""
    depth, in_string, escaped = 0, False, False
    for byte in line:
        if escaped:
            escaped = False
        elif in_string:
            escaped, in_string = byte == ord("\\"), byte != ord('"')
        elif byte == ord('"'):
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif byte in b"]}":
            depth -= 1
    return False


@given(line=st.lists(st.sampled_from(b'[[{{]}"\\a, \n\xff'), max_size=60).map(bytes), limit=st.integers(0, 4))
def test_nesting_is_measured_as_byte_by_byte(line: bytes, limit: int) -> None:
    assert protocol._nesting_exceeds(line, limit) == nests_deeper(line, limit)


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"1",
        b'"ping"',
        b"null",
        b"[" + request_line() + b"]",
        b"{}",
        b'{"id":1,"method":"ping"}',
        request_line(jsonrpc="1.0"),
        request_line(method=7),
        request_line(id=True),
        request_line(id=[1]),
    ],
)
def test_what_is_json_but_no_request_is_refused(line: bytes) -> None:
    assert (refused(line).code, refused(line).kind) == (-32600, "invalid_request")


def test_an_error_bears_the_id_of_the_request_where_it_can_be_read() -> None:
    assert refused(request_line(id=17, method=None)).call_id == 17


@pytest.mark.parametrize(
    "line",
    [
        request_line(params=["nightly"]),
        request_line(params=None),
        request_line(request_id=5),
        request_line(request_id=""),
        request_line(request_id="x" * (protocol.MAX_REQUEST_ID + 1)),
    ],
)
def test_params_of_the_wrong_shape_are_refused(line: bytes) -> None:
    assert (refused(line).code, refused(line).kind) == (-32602, "invalid_params")


def test_lines_are_split_wherever_the_bytes_break() -> None:
    for size in (1, 2, 5, 100):
        splitter = protocol.LineSplitter(100)
        lines = []
        text = b"one\ntwo\n\nthree\n"
        for start in range(0, len(text), size):
            splitter.feed(text[start : start + size])
            while (line := splitter.next_line()) is not None:
                lines.append(line)
        assert lines == [b"one", b"two", b"", b"three"]
        assert len(splitter) == 0


def test_the_end_of_input_ends_a_line() -> None:
    splitter = protocol.LineSplitter(100)
    splitter.feed(b"one\ntwo")
    splitter.feed_end()
    assert [splitter.next_line(), splitter.next_line(), splitter.next_line()] == [b"one", b"two", None]


@pytest.mark.parametrize("text", [b"12345\n", b"12345"])
def test_a_line_over_the_limit_is_told_with_and_without_its_newline(text: bytes) -> None:
    splitter = protocol.LineSplitter(4)
    splitter.feed(b"1234\n" + text)
    assert splitter.next_line() == b"1234"
    with pytest.raises(protocol.LineTooLongError):
        splitter.next_line()


def test_encoded_lines_are_one_line_each_and_come_back() -> None:
    result = {"text": "line\nline é ✓ \udc80", "n": 1.5}
    for line in (
        protocol.encode_result(1, result),
        protocol.encode_result(1, json.dumps(result).encode()),
        protocol.encode_error(None, 4, "unknown_name", "no\nsuch", "try"),
        protocol.encode_notification("event", result),
        protocol.encode_call(1, "ping", result),
    ):
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
    assert json.loads(protocol.encode_result(1, result))["result"] == result
    error = json.loads(protocol.encode_error(None, 4, "unknown_name", "no", "try"))
    assert error["error"] == {"code": 4, "message": "no", "data": {"kind": "unknown_name", "hint": "try"}}
    assert error["id"] is None


def test_nan_never_leaves() -> None:
    with pytest.raises(ValueError, match="JSON"):
        protocol.encode_result(1, {"x": float("nan")})


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"),
    [
        (1, "refused", 1),
        (1, "timeout", 124),
        (1, "config", 78),
        (4, "unknown_name", 4),
        (5, "not_permitted", 5),
        (-32601, "unknown_method", 2),
        (-32602, "invalid_params", 2),
        (-32603, "bug", 1),
        (99, "new", 1),
    ],
)
def test_errors_become_exit_codes(code: int, kind: str, exit_code: int) -> None:
    assert protocol.exit_code(code, kind) == exit_code


def test_times_are_utc_with_milliseconds() -> None:
    assert protocol.rfc3339(None) is None
    assert protocol.rfc3339(0.0) == "1970-01-01T00:00:00.000Z"
    assert protocol.rfc3339(1_700_000_000.9996) == "2023-11-14T22:13:21.000Z"
    assert protocol.parse_rfc3339("2023-11-14T22:13:21.250Z") == 1_700_000_001.25


def test_the_nearest_word() -> None:
    assert protocol.nearest("statsu", protocol.METHODS) == "status"
    assert protocol.nearest("xyzzy", protocol.METHODS) is None


def test_of_long_words_and_among_many_nothing_is_guessed() -> None:
    word = "x" * protocol.MAX_GUESSED_CHARS
    assert protocol.nearest(word, [word + "y"]) == word + "y"
    assert protocol.nearest(word + "x", [word + "y"]) is None
    others = [f"{number}" for number in range(protocol.MAX_COMPARED)]
    assert protocol.nearest(word, [*others[1:], word]) == word
    assert protocol.nearest(word, [*others, word]) is None


def test_a_number_that_is_none_is_repeated_in_part() -> None:
    error = refused(b'{"jsonrpc":"2.0","method":"ping","params":{"x":' + b"9" * 50_000 + b".0}}")
    assert "is not a JSON number" in error.message
    assert len(error.message) < 2 * protocol.MAX_ECHO


def test_where_the_socket_is_looked_for() -> None:
    assert protocol.default_socket({}, 0) == "/run/jobd/jobd.sock"
    assert protocol.default_socket({"XDG_RUNTIME_DIR": "/run/user/7"}, 7) == "/run/user/7/jobd.sock"
    assert protocol.default_socket({"XDG_STATE_HOME": "/s"}, 7) == "/s/jobd/jobd.sock"
    assert protocol.default_socket({"HOME": "/home/u"}, 7) == "/home/u/.local/state/jobd/jobd.sock"
    assert protocol.default_socket({}, 7, "/elsewhere") == "/elsewhere/jobd.sock"
