"""Wrong input from outside: every error named at once, nothing lost, the daemon goes on."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from tests.end_to_end.conftest import PROJECT, Jobd

WRONG = """
[dags.nightly]
[jobs.a]
dag = "nightly"
command = "true"
needs = ["b"]
[jobs.b]
dag = "nightly"
command = "true"
needs = ["c"]
[jobs.c]
dag = "nightly"
command = "true"
needs = ["a", "nobody"]
retires = 3
timeout = "2 fortnights"
[jobs.d]
command = 7
"""


def check(jobd: Jobd) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "supervisor", "-c", str(jobd.config), "--check"],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=30,
        check=False,
    )


def test_every_error_of_a_configuration_is_told_with_file_and_line(jobd: Jobd) -> None:
    jobd.configure(WRONG)
    checked = check(jobd)
    assert checked.returncode == 78
    lines = checked.stderr.splitlines()
    told = {line.split(": ", 2)[1].rpartition(":")[2]: line for line in lines}
    assert "retries" in told["15"]
    assert "fortnights" in told["16"]
    assert "nobody" in told["14"]
    assert "jobs.d.command" in told["18"]
    assert all(str(jobd.config) in line for line in lines)


def test_a_cycle_is_shown_as_a_path(jobd: Jobd) -> None:
    jobd.configure(
        WRONG.replace(', "nobody"', "").replace("retires = 3\n", "").replace('timeout = "2 fortnights"\n', "")
    )
    assert "→" in check(jobd).stderr


def test_a_name_defined_in_two_files_names_both(jobd: Jobd) -> None:
    jobd.configure("[jobs.a]\ncommand = 'true'\n")
    (jobd.folder / "jobs.d").mkdir()
    (jobd.folder / "jobs.d" / "more.toml").write_text("\n\n[jobs.a]\ncommand = 'true'\n")
    told = check(jobd).stderr
    assert "more.toml:3" in told
    assert "jobs.toml:1" in told


def test_broken_toml_is_told_with_its_line(jobd: Jobd) -> None:
    jobd.configure("[jobs.a]\ncommand = 'true'\nneeds = [\n")
    checked = check(jobd)
    assert checked.returncode == 78
    assert "jobs.toml:" in checked.stderr


def test_the_daemon_refuses_to_start_on_a_wrong_configuration(jobd: Jobd) -> None:
    jobd.configure(WRONG)
    command = [sys.executable, "-m", "supervisor", "-c", str(jobd.config), "--state-dir", str(jobd.state)]
    started = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=30, check=False)
    assert started.returncode == 78
    assert "retires" in started.stderr
    assert not jobd.state.exists()


def test_an_unknown_name_is_4_and_no_daemon_is_3(jobd: Jobd) -> None:
    jobd.start("[jobs.extract]\ncommand = 'true'\n")
    assert "did you mean extract" in jobd.ctl("start", "extrat", code=4).err
    for command in ("stop", "retry", "restart", "hold", "skip", "status", "wait", "logs", "history"):
        jobd.ctl(command, "nobody", code=4)
    jobd.ctl("status", "--run", "main@2001-01-01T00:00", code=4)
    jobd.stop()
    assert "jobd" in jobd.ctl("status", code=3).err


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"garbage\n",
        b"\xff\xfe\x00\n",
        b"[" * 1000 + b"\n",
        b'{"jsonrpc":"2.0","id":1,"method":"status","params":' + b'{"a":' * 1000 + b"1" + b"}" * 1001 + b"\n",
        b'{"jsonrpc":"2.0","id":NaN,"method":"status"}\n',
        b'{"jsonrpc":"2.0","id":1,"method":"no_such"}\n',
        b'{"jsonrpc":"2.0","id":1,"method":"start","params":{"names":7}}\n',
        b'{"jsonrpc":"2.0","id":1,"method":"start","params":{"command":"rm"}}\n',
        b'{"jsonrpc":"2.0","id":1,"method":"start","params":{"date":"nonsense"}}\n',
        b'{"jsonrpc":"2.0","id":1,"method":"events","params":{"since":99999999999999999999999}}\n',
        b'{"jsonrpc":"2.0","id":1,"method":"events","params":{"since":-1,"limit":-5}}\n',
        b'{"jsonrpc":"2.0","id":1,"method":"history","params":{"limit":-1,"since_s":1e308}}\n',
        b'{"jsonrpc":"2.0","id":1,"method":"wait","params":{"timeout":-1}}\n',
        b'{"jsonrpc":"2.0","id":1,"method":"report","params":{"job":"a","outcome":"data","data":99999999999999999999}}\n',
        b'{"jsonrpc":"2.0","id":1,"method":"logs","params":{"job":"../../etc/passwd"}}\n',
    ],
)
def test_a_bad_line_gets_an_error_and_the_connection_goes_on(jobd: Jobd, line: bytes) -> None:
    jobd.start("[jobs.a]\ncommand = 'true'\n")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(jobd.socket))
        answers = client.makefile("rb")
        client.sendall(line)
        assert "error" in json.loads(answers.readline())
        client.sendall(b'{"jsonrpc":"2.0","id":2,"method":"ping"}\n')
        assert json.loads(answers.readline())["result"]["version"]


def test_ten_megabytes_without_a_newline_get_an_error_and_the_daemon_goes_on(jobd: Jobd) -> None:
    jobd.start("[jobs.a]\ncommand = 'true'\n")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(jobd.socket))
        try:
            client.sendall(b"x" * 10_000_000)
        except OSError:
            pass  # closed before all of it was sent
        assert "error" in json.loads(client.makefile("rb").readline())
    jobd.ctl("ping")


def test_what_others_say_cannot_look_like_a_line_of_the_log(jobd: Jobd) -> None:
    jobd.start("[jobs.one]\ncommand = 'true'\n")
    jobd.ctl("hold", "one", "--reason", "x\n2026-01-01 00:00:00,000 INFO forged\x1b[31m")
    jobd.stop()
    assert "\\n2026-01-01 00:00:00,000 INFO forged\\x1b[31m" in jobd.log
    assert not [line for line in jobd.log.splitlines() if line.startswith("2026-01-01")]
