"""jobctl as people and scripts meet it: its real program, against a daemon whose answers are made here."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctl import words
from ctl.commands import COMMANDS
from supervisor.control import Request
from tests.fake_daemon import (
    DEADLINE_S,
    RUN_NAME,
    Answer,
    FakeDaemon,
    event,
    job,
    night,
    refusing,
    replying,
    run,
    silent,
)

ROOT = Path(__file__).parent.parent
PROGRAM = [sys.executable, "-m", "ctl.cli"]


def environ(**changes: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("JOBD_", "LC_", "XDG_", "NO_COLOR"))}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "LANG": "C.UTF-8", "TZ": "UTC", "TERM": "xterm", "COLUMNS": "80"} | changes


class Jobctl:
    """Runs jobctl without a terminal, to its end."""

    def __init__(self, socket: str) -> None:
        self.environ = environ(JOBD_SOCKET=socket)

    def __call__(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments], capture_output=True, text=True, timeout=30, env=self.environ | changes
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environ
        )


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(str(tmp_path / "jobd.sock")) as daemon:
        yield daemon


@pytest.fixture
def jobctl(daemon: FakeDaemon) -> Jobctl:
    return Jobctl(daemon.path)


CHANGED = {"run": RUN_NAME, "changed": [{"job": "load", "from": "stopped", "to": "queued"}], "ignored": []}


# ---- what is sent ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "params"),
    [
        ("start", {"names": []}),
        ("start nightly load --force --date 2026-11-23", {"names": ["nightly", "load"], "force": True,
                                                          "date": "2026-11-23"}),
        ("start --dry-run --request-id r1 load", {"names": ["load"], "dry_run": True}),
        ("stop load --now --run R", {"names": ["load"], "now": True, "run": "R"}),
        ("retry --downstream load", {"names": ["load"], "downstream": True}),
        ("restart load", {"names": ["load"]}),
        ("hold load --reason why", {"names": ["load"], "reason": "why"}),
        ("release load", {"names": ["load"]}),
        ("skip a b", {"names": ["a", "b"]}),
        ("mark a b failed", {"names": ["a", "b"], "outcome": "failed"}),
        ("mark a --run R success", {"names": ["a"], "outcome": "success", "run": "R"}),
    ],
)  # fmt: skip
def test_options_become_params(daemon: FakeDaemon, jobctl: Jobctl, arguments: str, params: dict[str, Any]) -> None:
    method = arguments.split()[0]
    daemon.answers[method] = replying(CHANGED)
    assert jobctl(*arguments.split()).returncode == 0
    (request,) = daemon.asked(method)
    assert request.params == params
    assert request.request_id == ("r1" if "r1" in arguments else None)


def test_globals_stand_before_and_after_the_command(tmp_path: Path, daemon: FakeDaemon) -> None:
    jobctl = Jobctl(str(tmp_path / "elsewhere"))
    for arguments in (
        ("--socket", daemon.path, "--json", "ping"),
        ("ping", "--json", "--socket", daemon.path),
        ("--json", "ping", f"--socket={daemon.path}"),
    ):
        done = jobctl(*arguments)
        assert json.loads(done.stdout)["version"] == "0.1.0", done


def test_report_knows_its_job_from_the_environment(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["report"] = replying({})
    inside = {"JOBD_JOB": "load", "JOBD_RUN": RUN_NAME, "JOBD_ATTEMPT": "2"}
    assert jobctl("report", "data", "--data", "17", **inside).returncode == 0
    assert jobctl("report", "failed", "--job", "other", "--message", "why", **inside).returncode == 0
    assert jobctl("report", "success", "--job", "load", "--run", "R").returncode == 0
    of_itself, of_another, from_outside = (request.params for request in daemon.requests)
    assert of_itself == {"outcome": "data", "job": "load", "run": RUN_NAME, "attempt": 2, "data": 17}
    assert of_another == {"outcome": "failed", "job": "other", "message": "why"}
    assert from_outside == {"outcome": "success", "job": "load", "run": "R"}


def test_report_without_a_job_or_an_amount_is_wrong_usage(jobctl: Jobctl) -> None:
    for arguments in (("report", "success"), ("report", "data", "--job", "load")):
        done = jobctl(*arguments)
        assert done.returncode == 2
        assert "--job" in done.stderr or "--data" in done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172800), ("7", 7), ("0.5", 0.5)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert words.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "1x", "-5", "1s1m", "1 h", "١s"])
def test_nonsense_durations_are_not(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        words.parse_duration(text)


# ---- exit codes and errors ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "exit_code"),
    [
        (refusing(1, "refused", "load succeeded already", "use restart"), 1),
        (refusing(4, "unknown_name", "no job or dag named load", "use restart"), 4),
        (refusing(5, "not_permitted", "you may only look", "use restart"), 5),
        (refusing(-32602, "invalid_params", "no such date", "use restart"), 2),
        (refusing(1, "config", "the configuration is wrong", "use restart"), 78),
        (refusing(1, "timeout", "it still runs", "use restart"), 124),
        (refusing(-32603, "bug", "sorry", "use restart"), 1),
    ],
)
def test_errors_have_their_exit_code_and_form(
    daemon: FakeDaemon, jobctl: Jobctl, answer: Answer, exit_code: int
) -> None:
    daemon.answers["start"] = answer
    plain, as_json = jobctl("start", "load"), jobctl("start", "load", "--json")
    assert plain.returncode == as_json.returncode == exit_code
    assert plain.stdout == ""
    assert plain.stderr.startswith("jobctl: ")
    assert plain.stderr.endswith(": use restart\n")
    assert plain.stderr.count("\n") == 1
    error = json.loads(as_json.stdout)["error"]
    assert set(error) == {"kind", "message", "hint"}
    assert as_json.stderr == plain.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["statsu"], "did you mean `jobctl status`"),
        (["--json", "xyzzy"], "jobctl --help"),
        ([], "jobctl --help"),
        (["start", "--wiat"], "did you mean --wait"),
        (["--sokcet", "x", "ping"], "did you mean --socket"),
        (["logs"], "NAME"),
        (["wait", "--timeout", "soon"], "1h30m"),
        (["mark", "load", "fine"], "failed"),
        (["start", "--date", "2026-13-01"], "YYYY-MM-DD"),
        (["shutdown", "--drain", "--stop-jobs"], "not allowed with"),
        (["events", "-n", "-1"], "-n"),
    ],
)
def test_wrong_usage_is_2_and_says_what_is_right(jobctl: Jobctl, arguments: list[str], hint: str) -> None:
    done = jobctl(*arguments)
    assert done.returncode == 2
    assert hint in done.stderr
    assert done.stderr.startswith("jobctl: ")
    if "--json" in arguments:
        assert json.loads(done.stdout)["error"]["kind"] == "usage"


@pytest.mark.parametrize("stale", [False, True])
def test_without_a_daemon_it_is_3_and_says_how_to_start_one(tmp_path: Path, stale: bool) -> None:
    path = tmp_path / "jobd.sock"
    if stale:
        import socket

        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(str(path))
    done = Jobctl(str(path))("status", "--json")
    assert done.returncode == 3
    assert f"no jobd answers at {path}" in done.stderr
    assert "jobd -c FILE" in done.stderr
    assert json.loads(done.stdout)["error"]["kind"] == "unreachable"


def test_a_daemon_that_dies_in_mid_command_is_3(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["wait"] = silent
    waiting = jobctl.start("wait", "load")
    daemon.wait_for(lambda: daemon.asked("wait"))
    daemon.stop()
    _out, err = waiting.communicate(timeout=DEADLINE_S)
    assert waiting.returncode == 3
    assert "closed the connection" in err


def test_a_socket_that_may_not_be_used_is_5(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may use any socket")
    Path(daemon.path).chmod(0)
    assert jobctl("ping").returncode == 5


def test_help_lists_every_command(jobctl: Jobctl) -> None:
    done = jobctl("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name}\b", done.stdout, re.MULTILINE)
        about = jobctl(name, "--help")
        assert about.returncode == 0
        assert f"usage: jobctl {name}" in about.stdout


# ---- waiting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "result", "exit_code"),
    [
        ([], {"runs": [run("success")], "jobs": [job("a", "skipped")]}, 0),
        ([], {"runs": [run("failed")], "jobs": []}, 1),
        (["load"], {"runs": [run("running")], "jobs": [job("load")]}, 0),
        (["load"], {"runs": [run("success")], "jobs": [job("load", "skipped")]}, 1),
        (["nightly"], {"runs": [run("stopped")], "jobs": [job("load")]}, 1),
    ],
)
def test_wait_ends_by_the_outcome_of_what_was_named(
    daemon: FakeDaemon, jobctl: Jobctl, names: list[str], result: dict[str, Any], exit_code: int
) -> None:
    daemon.answers["wait"] = replying(result)
    assert jobctl("wait", *names, "--timeout", "1m").returncode == exit_code
    assert daemon.requests[0].params == {"names": names, "timeout_s": 60.0}


def test_the_end_of_waiting_shows_all_jobs(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["wait"] = replying({"runs": [run("failed")], "jobs": []})
    assert jobctl("wait").stdout.startswith(f"run  nightly  {RUN_NAME}  failed")  # this daemon knows no status
    daemon.answers["status"] = replying(NIGHT)
    done = jobctl("wait", "nightly", "--run", RUN_NAME)
    assert daemon.asked("status")[-1].params == {"names": ["nightly"], "run": RUN_NAME}
    assert "load     failed   3  4m03s  exit code 7" in done.stdout


@pytest.mark.parametrize(("command", "exit_code"), [("start", 1), ("retry", 1), ("restart", 1), ("stop", 0)])
def test_commands_wait_for_the_run_that_they_acted_on(
    daemon: FakeDaemon, jobctl: Jobctl, command: str, exit_code: int
) -> None:
    daemon.answers[command] = replying(CHANGED)
    daemon.answers["wait"] = replying({"runs": [], "jobs": [job("load", "failed")]})
    done = jobctl(command, "load", "--wait", "--json")
    assert done.returncode == exit_code
    assert daemon.asked("wait")[0].params == {"names": ["load"], "run": RUN_NAME}
    assert json.loads(done.stdout)["jobs"][0]["state"] == "failed"


def test_a_dry_run_does_not_wait(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["start"] = replying(CHANGED)
    done = jobctl("start", "load", "--wait", "--dry-run")
    assert done.returncode == 0
    assert "would: load  stopped -> queued" in done.stdout
    assert not daemon.asked("wait")


@pytest.mark.parametrize("terminal", [False, True])
def test_ctrl_c_while_waiting_says_that_the_jobs_go_on(daemon: FakeDaemon, jobctl: Jobctl, terminal: bool) -> None:
    daemon.answers |= {"wait": silent, "status": replying(night("running", job("load", "running")))}
    daemon.answers["subscribe"] = stream
    if terminal:
        screen = Terminal(daemon, "wait", "load")
        screen.read_until("load")
        screen.process.send_signal(signal.SIGINT)
        screen.read_until("go on")
        assert screen.end() == 130
        return
    waiting = jobctl.start("wait", "load")
    daemon.wait_for(lambda: daemon.asked("wait"))
    waiting.send_signal(signal.SIGINT)
    _out, err = waiting.communicate(timeout=DEADLINE_S)
    assert waiting.returncode == 130
    assert "the jobs go on" in err
    assert "Traceback" not in err


# ---- lines without a terminal ------------------------------------------------------------------

NIGHT = night(
    "failed",
    job("extract"),
    job("load", "failed", attempt=3, duration_s=243.2, reason="exit code 7"),
    job("report", "blocked", waiting_for=[{"kind": "job", "what": "load"}, {"kind": "slot", "what": "disk"}]),
    job("archive", "stopped", held=True),
    finished_at="2026-11-23T01:41:12.000Z",
)


def test_status_lines_are_made_for_grep_and_awk(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["status"] = replying(NIGHT)
    done = jobctl("status", "nightly", "--run", "R")
    assert daemon.requests[0].params == {"names": ["nightly"], "run": "R"}
    assert done.stdout.splitlines() == [
        "run  nightly  nightly@2026-11-23T02:00  failed  schedule  2026-11-23T01:00:00  41m12s  "
        "1 failed, 1 blocked, 1 stopped, 1 success",
        "job  nightly  extract  success  1  12s",
        "job  nightly  load     failed   3  4m03s  exit code 7",
        "job  nightly  report   blocked  -  -      waits for load, a slot of disk",
        "job  nightly  archive  stopped  -  -      held",
    ]


def test_status_as_json_is_what_the_daemon_said(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["status"] = replying(NIGHT)
    assert json.loads(jobctl("status", "--json").stdout) == NIGHT


def test_status_quiet_answers_by_exit_code(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["status"] = replying(NIGHT)
    done = jobctl("status", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    daemon.answers["status"] = replying(night("running", job("extract"), job("load", "running")))
    assert jobctl("status", "--quiet").returncode == 0


def test_a_thousand_jobs_are_all_there_without_a_terminal(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["status"] = replying(night("running", *(job(f"j{number}") for number in range(1000))))
    assert len(jobctl("status").stdout.splitlines()) == 1001


def test_changes_are_told(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["start"] = replying(CHANGED | {"ignored": [{"job": "extract", "why": "it runs already"}]})
    assert jobctl("start").stdout.splitlines() == [
        f"run {RUN_NAME}",
        "load  stopped -> queued",
        "extract  unchanged: it runs already",
    ]
    many = [{"job": f"j{number}", "from": "stopped", "to": "queued"} for number in range(300)]
    daemon.answers["start"] = replying({"run": RUN_NAME, "changed": many, "ignored": []})
    assert jobctl("start").stdout.splitlines() == [f"run {RUN_NAME}", "300 jobs stopped -> queued"]
    daemon.answers["start"] = replying({"run": None, "changed": [], "ignored": []})
    assert jobctl("start").stdout == "nothing to change\n"


def test_history_lines(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    attempt = {"run": RUN_NAME, "job": "load", "attempt": 2, "state": "failed", "reason": "exit code 7"}
    attempt |= {"started_at": "2026-11-23T01:00:05.000Z", "duration_s": 0.25}
    daemon.answers["history"] = replying({"attempts": [attempt]})
    done = jobctl("history", "load", "-n", "5", "--since", "2h")
    assert daemon.requests[0].params == {"names": ["load"], "limit": 5, "since_s": 7200.0}
    assert done.stdout == f"{RUN_NAME}  load  2  failed  2026-11-23 01:00:05  0.2s  exit code 7\n"


def test_reload_shows_the_difference_and_refuses_with_78(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    difference: dict[str, Any] = {"added": ["a"], "removed": ["b"], "changed": ["c"], "unchanged": ["d"], "errors": []}
    daemon.answers["reload"] = replying(difference)
    assert jobctl("reload", "--dry-run").stdout.splitlines() == ["+ a", "- b", "~ c", "1 unchanged"]
    assert daemon.requests[0].params == {"dry_run": True}
    error = {"file": "jobs.toml", "line": 7, "where": "jobs.load", "message": "unknown key"}
    daemon.answers["reload"] = replying(difference | {"errors": [error]})
    done = jobctl("reload")
    assert done.returncode == 78
    assert "jobs.toml:7: error: jobs.load: unknown key" in done.stdout


def test_shutdown_ping_and_version(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers |= {"shutdown": replying({}), "version": replying({"version": "0.1.0"})}
    assert "finish" in jobctl("shutdown", "--drain").stdout
    assert daemon.requests[0].params == {"drain": True}
    assert jobctl("ping").stdout == f"jobd 0.1.0 answers, pid {os.getpid()}\n"
    assert jobctl("version").stdout == "jobctl 0.1.0\njobd 0.1.0\n"
    assert json.loads(jobctl("version", "--json").stdout) == {"version": "0.1.0", "jobctl": "0.1.0"}


# ---- events and logs ---------------------------------------------------------------------------


def stream(daemon: FakeDaemon, request: Request) -> None:
    daemon.control.reply(request.token, {"since": 0}, more=True)


class Journal:
    """Answers `events` and `subscribe` from a list of events, in pages."""

    def __init__(self, daemon: FakeDaemon, length: int) -> None:
        self.entries = [event(number) for number in range(1, length + 1)]
        daemon.answers |= {"events": self.page, "subscribe": self.subscribe}

    def page(self, daemon: FakeDaemon, request: Request) -> None:
        since, limit = request.params.get("since", 0), request.params["limit"]
        daemon.control.reply(request.token, {"events": self.entries[since : since + limit]})

    def subscribe(self, daemon: FakeDaemon, request: Request) -> None:
        daemon.control.reply(request.token, {"since": len(self.entries)}, more=True)


def test_events_are_the_whole_journal_one_a_line(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    Journal(daemon, 2500)
    ids = [json.loads(line)["id"] for line in jobctl("events", "--json").stdout.splitlines()]
    assert ids == list(range(1, 2501))
    last = [line.split()[0] for line in jobctl("events", "-n", "3").stdout.splitlines()]
    assert last == ["2498", "2499", "2500"]
    first = jobctl("events", "--since", "2499").stdout
    assert first == f"2500  2026-11-23T01:00:05  success  {RUN_NAME}/load#1\n"


def test_following_goes_on_by_id_after_a_lag(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    Journal(daemon, 3)
    following = jobctl.start("events", "-f", "--since", "0", "--json")
    assert following.stdout
    daemon.wait_for(lambda: daemon.asked("subscribe"))
    token = daemon.asked("subscribe")[0].token
    daemon.notify(token, "event", event(4))
    daemon.notify(token, "lagged", {})
    daemon.wait_for(lambda: len(daemon.asked("subscribe")) == 2)
    assert daemon.asked("subscribe")[1].params == {"since": 4}
    daemon.notify(daemon.asked("subscribe")[1].token, "event", event(4))  # seen already
    daemon.notify(daemon.asked("subscribe")[1].token, "event", event(5))
    ids = [json.loads(following.stdout.readline())["id"] for _ in range(5)]
    assert ids == [1, 2, 3, 4, 5]
    following.send_signal(signal.SIGINT)
    _out, err = following.communicate(timeout=DEADLINE_S)
    assert (following.returncode, err) == (130, "")


def test_watch_without_a_terminal_prints_events(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["subscribe"] = stream
    watching = jobctl.start("watch", "nightly")
    daemon.wait_for(lambda: daemon.asked("subscribe"))
    daemon.notify(daemon.requests[0].token, "event", event(6, dag="weekly"))
    daemon.notify(daemon.requests[0].token, "event", event(7, text="exit code 0"))
    assert watching.stdout
    assert watching.stdout.readline().startswith("7  ")
    watching.kill()
    watching.communicate()


LOG = {"job": "load", "run": RUN_NAME, "attempt": 1, "state": "running", "text": "one\n", "size": 4}


def test_logs_are_raw_without_a_terminal(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    text = "a\x1b[31mred\x1b]0;title\x07 \udcff é\n"
    daemon.answers["logs"] = replying(LOG | {"text": text})
    done = jobctl("logs", "load", "-n", "5", "--attempt", "2")
    assert daemon.requests[0].params == {"job": "load", "lines": 5, "attempt": 2, "follow": False}
    assert done.stdout == text.replace("\udcff", "\\udcff")
    assert json.loads(jobctl("logs", "load", "--json").stdout)["text"] == text


def test_logs_are_followed_to_the_end_of_the_attempt(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    def log(daemon: FakeDaemon, request: Request) -> None:
        daemon.control.reply(request.token, LOG, more=True)
        daemon.control.notify(request.token, "log", {"text": "two\n"})
        daemon.control.notify(request.token, "log_end", {"state": "success"})
        daemon.control.end(request.token)

    daemon.answers["logs"] = log
    assert jobctl("logs", "-f", "load").stdout == "one\ntwo\n"
    lines = [json.loads(line) for line in jobctl("logs", "-f", "load", "--json").stdout.splitlines()]
    assert lines == [LOG, {"text": "two\n"}, {"state": "success"}]


def test_log_text_is_harmless_on_a_terminal() -> None:
    cleaner = words.LogCleaner()
    pieces = ["\x1b[3", "1mred\x1b[0m\tok\r\n", "\x1b]0;evil\x07\x1b[2J", "\x9b5n", "\x1b"]
    shown = "".join(cleaner.clean(piece) for piece in pieces)
    assert shown == "\x1b[31mred\x1b[0m\tok\r\n\\x1b]0;evil\\x07\\x1b[2J\\x9b5n"


# ---- readers of stdout -------------------------------------------------------------------------


def test_a_reader_that_leaves_early_changes_nothing(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["status"] = replying(night("running", *(job(f"j{number}") for number in range(5000))))
    command = f"{' '.join(PROGRAM)} status | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, env=jobctl.environ)
    assert done.stdout.splitlines()[0].startswith("run ")
    assert done.stdout.splitlines()[1:] == ["0"]
    assert done.stderr == ""


def test_following_ends_when_nobody_reads_any_more(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["subscribe"] = stream
    following = jobctl.start("events", "-f")
    daemon.wait_for(lambda: daemon.asked("subscribe"))
    assert following.stdout
    following.stdout.close()
    assert following.wait(DEADLINE_S) == 0


def test_a_full_disk_behind_stdout_is_an_error(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, "ping"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, env=jobctl.environ
        )
    assert done.returncode == 1
    assert "No space left" in done.stderr


def test_closed_stdout_and_stderr_are_no_error(jobctl: Jobctl) -> None:
    command = f"{' '.join(PROGRAM)} ping >&- 2>&-; echo $?"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, env=jobctl.environ)
    assert done.stdout == "0\n"


def test_the_fast_path_imports_little(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["status"] = replying(NIGHT)
    code = (
        "import sys; from ctl.cli import main; main(sys.argv[1:]); "
        "print(sorted({'rich', 'typing', 'dataclasses', 'datetime', 'subprocess', 'pathlib', 'asyncio', 'shutil'}"
        " & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, "status", "--json"],
        capture_output=True,
        text=True,
        timeout=30,
        env=jobctl.environ,
    )
    assert done.stderr == "[]\n"
    assert json.loads(done.stdout) == NIGHT


# ---- validate ----------------------------------------------------------------------------------


def test_a_file_is_checked_without_a_daemon(tmp_path: Path) -> None:
    pytest.importorskip("supervisor.__main__")
    jobctl = Jobctl(str(tmp_path / "none"))
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('[jobs.load]\ncommand = "true"\n')
    bad.write_text('[jobs.load]\ncomand = "true"\n')
    done = jobctl("validate", str(good))
    assert done.returncode == 0, done
    assert "right" in done.stdout
    wrong = jobctl("validate", str(bad))
    assert wrong.returncode == 78, wrong
    assert re.search(r"bad\.toml:\d+: error: .*comand", wrong.stdout)
    assert json.loads(jobctl("validate", str(bad), "--json").stdout)["ok"] is False


# ---- a person at a terminal --------------------------------------------------------------------


class Terminal:
    """jobctl on a terminal of its own; keeps what it wrote."""

    def __init__(self, daemon: FakeDaemon, *arguments: str, columns: int = 80, lines: int = 24, **changes: str) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (lines, columns))
        variables = environ(JOBD_SOCKET=daemon.path) | changes
        del variables["COLUMNS"]
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen([*PROGRAM, *arguments], stdin=slave, stdout=slave, stderr=slave, env=variables)
        os.close(slave)
        self.text = ""
        self._pending = b""

    def read_until(self, wanted: str) -> str:
        """All that was written up to now, once it has `wanted`. A further call looks at what is new only."""
        seen, deadline = "", time.monotonic() + DEADLINE_S
        while wanted not in seen:
            assert time.monotonic() < deadline, f"{wanted!r} did not come in {seen!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self._pending += os.read(self._master, 65536)
            seen = self._pending.decode(errors="ignore")
        self.text += seen
        self._pending = b""
        return seen

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        """The exit code; the terminal is as it was."""
        while select.select([self._master], [], [], DEADLINE_S)[0]:
            try:
                self._pending += os.read(self._master, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                break
        code = self.process.wait(DEADLINE_S)
        self.text += self._pending.decode()
        assert termios.tcgetattr(self._master) == self.before
        os.close(self._master)
        return code


def shown(daemon: FakeDaemon, *arguments: str, **settings: Any) -> str:
    screen = Terminal(daemon, *arguments, **settings)
    assert screen.end() == 0
    return screen.text.replace("\r\n", "\n")


def test_the_table_has_signs_words_and_colours(daemon: FakeDaemon) -> None:
    daemon.answers["status"] = replying(NIGHT)
    text = shown(daemon, "status")
    assert "\x1b[1;31m✗ failed\x1b[0m" in text
    assert "waits for load, a slot of disk" in text


def test_without_colour_signs_and_words_remain(daemon: FakeDaemon) -> None:
    daemon.answers["status"] = replying(NIGHT)
    for changes in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        text = shown(daemon, "status", **changes)
        assert "\x1b" not in text
        assert re.search(r"load +✗ failed +3 +4m03s +exit code 7", text)
    assert "\x1b" not in shown(daemon, "status", "--color", "never")


def test_colour_can_be_asked_for_without_a_terminal(daemon: FakeDaemon, jobctl: Jobctl) -> None:
    daemon.answers["status"] = replying(NIGHT)
    assert "\x1b[1;31m✗ failed" in jobctl("status", "--color", "always").stdout
    assert "\x1b" not in jobctl("status").stdout


@pytest.mark.parametrize("changes", [{"LANG": "C"}, {"LC_ALL": "C"}, {"LANG": "C", "PYTHONUTF8": "0"}])
def test_an_ascii_terminal_gets_ascii_signs(daemon: FakeDaemon, changes: dict[str, str]) -> None:
    long = "x" * 100
    daemon.answers["status"] = replying(night("failed", job("load", "failed"), job("wait", "queued", reason=long)))
    text = shown(daemon, "status", **changes)
    assert "x failed" in text
    assert text.isascii()


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(daemon: FakeDaemon, columns: int) -> None:
    daemon.answers["status"] = replying(NIGHT)
    text = shown(daemon, "status", columns=columns, NO_COLOR="1")
    assert max(map(len, text.splitlines())) <= columns
    if columns >= 40:
        assert re.search(r"load +✗ failed", text)


def test_text_from_jobs_can_do_nothing_to_the_terminal(daemon: FakeDaemon) -> None:
    evil = "[red]not markup[/] \x1b[2J\x1b]0;title\x07 \u202egnp"
    daemon.answers["status"] = replying(night("failed", job("load", "failed", reason=evil)))
    text = shown(daemon, "status", NO_COLOR="1", columns=200)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert r"[red]not markup[/] \x1b[2J\x1b]0;title\x07 \u202egnp" in text


def test_a_great_many_jobs_are_summarised_and_all_shows_them(daemon: FakeDaemon) -> None:
    jobs = [job(f"j{number}", "failed" if number % 100 == 7 else "success") for number in range(1000)]
    daemon.answers["status"] = replying(night("failed", *jobs))
    text = shown(daemon, "status", NO_COLOR="1")
    assert len(re.findall("✗ failed", text)) == 11  # the run and its ten
    assert "and 990 more: 990 success; --all shows them" in text
    assert len(shown(daemon, "status", "--all").splitlines()) >= 1000


def test_the_board_follows_the_events_and_q_gives_the_terminal_back(daemon: FakeDaemon) -> None:
    daemon.answers |= {"subscribe": stream, "status": replying(night("stopped", job("load", "queued")))}
    screen = Terminal(daemon, "watch", "nightly")
    screen.read_until("queued")
    assert daemon.asked("status")[0].params == {"names": ["nightly"]}
    daemon.answers["status"] = replying(night("success", job("load", "success")))
    daemon.notify(daemon.asked("subscribe")[0].token, "event", event(1))
    screen.read_until("✓ success")
    screen.type(b"q")
    assert screen.end() == 0
    assert screen.text.endswith("\x1b[?1049l\x1b[?25h") or "\x1b[?1049l" in screen.text
    assert "\x1b[?25h" in screen.text  # the cursor is back


@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_board_gives_the_terminal_back_when_it_is_ended(daemon: FakeDaemon, end: signal.Signals, code: int) -> None:
    daemon.answers |= {"subscribe": stream, "status": replying(NIGHT)}
    screen = Terminal(daemon, "watch")
    screen.read_until("q quits")
    screen.process.send_signal(end)
    assert screen.end() == code
    assert "\x1b[?1049l" in screen.text
    assert "Traceback" not in screen.text


def test_the_board_does_not_ask_while_nothing_happens(daemon: FakeDaemon) -> None:
    daemon.answers |= {"subscribe": stream, "status": replying(night("running", job("load", "running")))}
    screen = Terminal(daemon, "watch")
    screen.read_until("12s")
    screen.read_until("13s")  # the durations go on by themselves
    assert len(daemon.asked("status")) == 1
    screen.type(b"q")
    assert screen.end() == 0


def test_the_board_outlives_the_daemon(daemon: FakeDaemon) -> None:
    daemon.answers |= {"subscribe": stream, "status": replying(NIGHT)}
    screen = Terminal(daemon, "watch")
    screen.read_until("q quits")
    daemon.stop()
    screen.read_until("does not answer")
    answers: dict[str, Answer] = {"subscribe": stream, "status": replying(night("success", job("fresh")))}
    with FakeDaemon(daemon.path, answers):
        screen.read_until("fresh")
        screen.type(b"q")
        assert screen.end() == 0


def test_the_board_of_an_unknown_name_is_an_error(daemon: FakeDaemon) -> None:
    daemon.answers |= {"subscribe": stream, "status": refusing(4, "unknown_name", "no such dag", "see status")}
    screen = Terminal(daemon, "watch", "x")
    assert screen.end() == 4
    assert "no such dag" in screen.text
    assert "\x1b[?1049h" not in screen.text


def test_waiting_at_a_terminal_shows_the_board_and_then_the_table(daemon: FakeDaemon) -> None:
    daemon.answers |= {"start": replying(CHANGED), "wait": silent, "subscribe": stream}
    daemon.answers["status"] = replying(night("running", job("load", "running")))
    screen = Terminal(daemon, "start", "load", "--wait")
    screen.read_until("running")
    daemon.answers["status"] = replying(night("failed", job("load", "failed", reason="exit code 7")))
    token = daemon.asked("wait")[0].token
    daemon.call(lambda: daemon.control.reply(token, {"runs": [], "jobs": [job("load", "failed")]}))
    screen.read_until("exit code 7")
    assert screen.end() == 1


def test_the_board_fits_the_screen(daemon: FakeDaemon) -> None:
    jobs = [job(f"j{number}", "failed" if number == 999 else "success") for number in range(1000)]
    daemon.answers |= {"subscribe": stream, "status": replying(night("failed", *jobs))}
    screen = Terminal(daemon, "watch", lines=20, NO_COLOR="1")
    text = screen.read_until("q quits")
    assert "j999" in text
    assert text.count("success\r\n") + text.count("success ") < 25
    screen.type(b"q")
    assert screen.end() == 0
