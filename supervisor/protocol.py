"""The words and limits of the control socket: JSON-RPC 2.0, one UTF-8 JSON object a line, each way.

Owns the encoding of lines, the limits, the error codes and kinds, the exit codes that jobctl makes of
them, and where the socket is looked for. Knows nothing of connections, the loop or jobs. Called by
`supervisor.control` on one side and by `ctl` on the other, so a rule stands here once.

Standard library only, and little of it: jobctl pays for every import at each start (`typing` alone
costs 3 ms, `dataclasses` 8 ms).
"""

from __future__ import annotations

import json
import os
import re
import time
from itertools import accumulate, islice

from supervisor import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

VERSION = __version__

#: The longest request line, without its newline.
MAX_REQUEST_BYTES = 64 * 1024
#: The longest line that the daemon sends.
MAX_REPLY_BYTES = 64 * 1024 * 1024
#: Clients served at once; the next one is told that the daemon is busy.
MAX_CONNECTIONS = 256
#: A line that was begun must be whole by then, the first one counted from the connection.
LINE_TIMEOUT_S = 5.0
#: Objects and lists within each other in a request.
MAX_DEPTH = 32
#: Characters of a `request_id`.
MAX_REQUEST_ID = 128
#: Characters of what someone sent that an error message repeats.
MAX_ECHO = 80
#: Guessing what was meant costs time: only for words so long, among so many.
MAX_GUESSED_CHARS, MAX_COMPARED = 64, 1000

METHODS = (
    *("start", "stop", "retry", "restart", "hold", "release", "skip", "mark", "report", "wait"),
    *("status", "history", "events", "subscribe", "logs", "ping", "version", "reload", "shutdown"),
)

# Error codes: those of JSON-RPC, then our own.
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
UNKNOWN_METHOD = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
REFUSED = 1
UNKNOWN_NAME = 4
NOT_PERMITTED = 5

# Exit codes of jobctl, the same for every command.
EXIT_OK = 0
EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_UNKNOWN_NAME = 4
EXIT_NOT_PERMITTED = 5
EXIT_CONFIG = 78
EXIT_TIMEOUT = 124
EXIT_INTERRUPTED = 130

_EXIT_BY_KIND = {"timeout": EXIT_TIMEOUT, "config": EXIT_CONFIG}
_EXIT_BY_CODE = {
    PARSE_ERROR: EXIT_USAGE,
    INVALID_REQUEST: EXIT_USAGE,
    UNKNOWN_METHOD: EXIT_USAGE,
    INVALID_PARAMS: EXIT_USAGE,
    UNKNOWN_NAME: EXIT_UNKNOWN_NAME,
    NOT_PERMITTED: EXIT_NOT_PERMITTED,
}


def exit_code(code: int, kind: str) -> int:
    """The exit code that an error of the daemon becomes."""
    return _EXIT_BY_KIND.get(kind, _EXIT_BY_CODE.get(code, EXIT_REFUSED))


# ---- requests ----------------------------------------------------------------------------------


class ProtocolError(Exception):
    """A line that is no good request. `call_id` is the request's id as far as it could be read, else None."""

    def __init__(self, code: int, kind: str, message: str, hint: str = "", call_id: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind
        self.message = message
        self.hint = hint
        self.call_id = call_id


class Call:
    """One decoded request line. Without `expects_reply` it is a notification: done, not answered."""

    __slots__ = ("call_id", "expects_reply", "method", "params", "request_id")

    def __init__(
        self, call_id: Any, expects_reply: bool, method: str, params: dict[str, Any], request_id: str | None
    ) -> None:
        self.call_id = call_id
        self.expects_reply = expects_reply
        self.method = method
        self.params = params
        self.request_id = request_id


_EXAMPLE = '{"jsonrpc":"2.0","id":1,"method":"status","params":{}}'


def decode_call(line: bytes) -> Call:
    """The request on this line. Raises ProtocolError, with the answer that the sender deserves.

    `request_id` may stand in `params` or beside them; it is taken out of the params.
    """
    message = _decode_strictly(line)
    if not isinstance(message, dict):
        what = "a batch" if isinstance(message, list) else "no JSON object"
        raise ProtocolError(
            INVALID_REQUEST, "invalid_request", f"the line is {what}", f"send one object a line: {_EXAMPLE}"
        )
    call_id = message.get("id")
    if isinstance(call_id, bool) or not isinstance(call_id, int | float | str | None):
        raise ProtocolError(
            INVALID_REQUEST, "invalid_request", "'id' is neither a number nor text nor null", "send a number"
        )
    method, params = message.get("method"), message.get("params", {})
    if message.get("jsonrpc") != "2.0" or not isinstance(method, str):
        lacks = "'method'" if message.get("jsonrpc") == "2.0" else '"jsonrpc":"2.0"'
        hint = f"a request looks like {_EXAMPLE}"
        raise ProtocolError(INVALID_REQUEST, "invalid_request", f"the request lacks {lacks}", hint, call_id)
    if not isinstance(params, dict):
        hint = 'name them: "params":{"names":["nightly"]}'
        raise ProtocolError(INVALID_PARAMS, "invalid_params", "'params' is not an object", hint, call_id)
    request_id = params.pop("request_id", message.get("request_id"))
    if request_id is not None and not (isinstance(request_id, str) and 0 < len(request_id) <= MAX_REQUEST_ID):
        hint = f"send 1 to {MAX_REQUEST_ID} characters of text"
        raise ProtocolError(INVALID_PARAMS, "invalid_params", "'request_id' is not a short text", hint, call_id)
    return Call(call_id, "id" in message, method, params, request_id)


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text:.{MAX_ECHO}} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    return number if abs(number) != float("inf") else _refuse_number(text)


_STRICT = json.JSONDecoder(parse_constant=_refuse_number, parse_float=_finite)


def _decode_strictly(line: bytes) -> Any:
    try:
        if _nesting_exceeds(line, MAX_DEPTH):
            raise ValueError(f"more than {MAX_DEPTH} objects and lists within each other")
        value = _STRICT.decode(line.decode("utf-8"))
        if b"\\u" in line:  # an escape may hide half a surrogate pair, which no file or database takes
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeError:
        text = "the line is not UTF-8 text"
    except (ValueError, RecursionError) as error:
        text = f"the line is not JSON: {error}" if line.strip() else "the line is empty"
    raise ProtocolError(PARSE_ERROR, "parse_error", text, f"send one object a line: {_EXAMPLE}")


#: Strings, each with what stands between it and the next bracket or string. The last one may lack its end.
_STRINGS = re.compile(rb'(?:"(?:[^"\\]++|\\.)*+["\\]?[^][{}"]*+)++', re.DOTALL)
#: Brackets as signed bytes: one level in, one level out. All else is left out.
_LEVELS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


def _nesting_exceeds(line: bytes, limit: int) -> bool:
    """Whether brackets outside strings nest deeper than `limit`; looked at before the parser recurses."""
    if line.count(b"[") + line.count(b"{") <= limit:
        return False
    levels = memoryview(_STRINGS.sub(b"", line).translate(_LEVELS, _NO_BRACKETS)).cast("b")
    return max(accumulate(levels), default=0) > limit


# ---- lines -------------------------------------------------------------------------------------


def encode_json(value: Any) -> bytes:
    """Compact JSON in UTF-8. Half surrogate pairs (bytes that were no text) are written as escapes."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def encode_call(call_id: int, method: str, params: dict[str, Any]) -> bytes:
    """A request line."""
    return encode_json({"jsonrpc": "2.0", "id": call_id, "method": method, "params": params}) + b"\n"


def encode_result(call_id: Any, result: dict[str, Any] | bytes) -> bytes:
    """A reply line. `result` as bytes is JSON already, without newlines."""
    body = result if isinstance(result, bytes) else encode_json(result)
    return b'{"jsonrpc":"2.0","id":' + encode_json(call_id) + b',"result":' + body + b"}\n"


def encode_error(call_id: Any, code: int, kind: str, message: str, hint: str = "") -> bytes:
    """The reply line of a request that was not done."""
    error = {"code": code, "message": message, "data": {"kind": kind, "hint": hint}}
    return encode_json({"jsonrpc": "2.0", "id": call_id, "error": error}) + b"\n"


def encode_notification(method: str, params: dict[str, Any]) -> bytes:
    """A line of a stream: nobody asked for it by id."""
    return encode_json({"jsonrpc": "2.0", "method": method, "params": params}) + b"\n"


class LineTooLongError(Exception):
    """More bytes than allowed came without a newline; what follows cannot be told apart any more."""


class LineSplitter:
    """Bytes in, lines out (without their newline). Holds at most one line above what was fed."""

    __slots__ = ("_buffer", "_max_bytes", "_scanned")

    def __init__(self, max_bytes: int) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes
        self._scanned = 0  # no newline before this offset

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def feed_end(self) -> None:
        """No more will come: what is left is a line, even without a newline."""
        if self._buffer and not self._buffer.endswith(b"\n"):
            self._buffer += b"\n"

    def next_line(self) -> bytes | None:
        """The next whole line, or None until more is fed. Raises LineTooLongError."""
        end = self._buffer.find(b"\n", self._scanned)
        if (len(self._buffer) if end < 0 else end) > self._max_bytes:
            raise LineTooLongError
        if end < 0:
            self._scanned = len(self._buffer)
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._scanned = 0
        return line

    def __len__(self) -> int:
        """Bytes that were fed and not handed out."""
        return len(self._buffer)


# ---- shared knowledge --------------------------------------------------------------------------


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    if len(word) > MAX_GUESSED_CHARS:
        return None
    import difflib  # only on the way to an error

    matches = difflib.get_close_matches(word, list(islice(known, MAX_COMPARED)), n=1)
    return matches[0] if matches else None


def echo(value: object) -> str:
    """What someone sent, as an error message repeats it."""
    return f"{value!r:.{MAX_ECHO}}"


def rfc3339(at: float | None) -> str | None:
    """Seconds since the epoch as UTC text with milliseconds; None stays None."""
    if at is None:
        return None
    seconds, milliseconds = divmod(round(at * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{milliseconds:03d}Z"


def parse_rfc3339(text: str) -> float:
    """Seconds since the epoch. Raises ValueError."""
    from datetime import datetime  # not on the way of `--json`

    return datetime.fromisoformat(text).timestamp()


def default_state_dir(environ: Mapping[str, str], uid: int) -> str:
    """Where the daemon of this user keeps its state, if nothing says otherwise."""
    if uid == 0:
        return "/var/lib/jobd"
    home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - pathlib is a slow import
    return os.path.join(environ.get("XDG_STATE_HOME") or os.path.join(home, ".local/state"), "jobd")  # noqa: PTH118


def default_socket(environ: Mapping[str, str], uid: int, state_dir: str | None = None) -> str:
    """Where the socket of this user's daemon is, if nothing says otherwise. jobctl looks at $JOBD_SOCKET first."""
    if uid == 0:
        return "/run/jobd/jobd.sock"
    runtime_dir = environ.get("XDG_RUNTIME_DIR")
    folder = runtime_dir or state_dir or default_state_dir(environ, uid)
    return os.path.join(folder, "jobd.sock")  # noqa: PTH118
