"""The commands that only look: status, history, logs, events, watch, ping, version, validate.

Each takes the session and its parsed options, and returns the exit code. Called from the table in
`ctl.commands`.
"""

from __future__ import annotations

import json
import os
import sys

from ctl import words
from ctl.failure import Failure
from supervisor import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from ctl.session import Session

#: Events asked for at once.
EVENTS_PER_PAGE = 1000
#: How long the offline check of a configuration may take.
VALIDATE_TIMEOUT_S = 60.0


def status(session: Session, options: argparse.Namespace) -> int:
    result = session.call("status", {"names": options.names, "run": options.run})
    if options.quiet:
        return _health(result)
    show_status(session, result, show_all=options.all)
    return protocol.EXIT_OK


def show_status(session: Session, result: dict[str, Any], *, show_all: bool = False) -> None:
    out = session.out
    if out.as_json:
        out.say_json(result)
    elif out.pretty:
        from ctl import render

        out.say(render.to_text(render.status(result, out, show_all=show_all), out))
    else:
        out.say("\n".join(words.status_lines(result)) or "no jobs")


def _health(result: dict[str, Any]) -> int:
    """Refused if anything shown needs someone: a run that failed, or a job that failed, is lost or blocked."""
    states = [run["state"] for run in result["runs"] if not result["jobs"]] + [job["state"] for job in result["jobs"]]
    return protocol.EXIT_REFUSED if words.UNHAPPY.intersection(states) else protocol.EXIT_OK


def history(session: Session, options: argparse.Namespace) -> int:
    result = session.call("history", {"names": options.names, "limit": options.number, "since_s": options.since})
    out = session.out
    if out.as_json:
        out.say_json(result)
    elif out.pretty:
        from ctl import render

        out.say(render.to_text(render.history(result["attempts"], out), out))
    else:
        out.say("\n".join(words.columns(words.history_rows(result["attempts"]))) or "no attempts")
    return protocol.EXIT_OK


# ---- logs --------------------------------------------------------------------------------------


def logs(session: Session, options: argparse.Namespace) -> int:
    """Raw bytes of the log where nobody looks; on a terminal only what cannot do harm there."""
    params = {"job": options.name, "run": options.run, "attempt": options.attempt, "lines": options.number}
    result = session.call("logs", params | {"follow": options.follow})
    out = session.out
    if out.as_json:
        out.say_json(result)
    cleaner = words.LogCleaner() if out.terminal else None

    def show(text: str) -> None:
        if not out.as_json:
            out.write(cleaner.clean(text) if cleaner else text)

    show(result["text"])
    while options.follow and out.wait_for(session.client):
        method, params = session.client.notification() or ("", {})
        if method == "lagged":
            hint = "read it as a whole with `jobctl logs`, or follow again"
            raise Failure(protocol.EXIT_REFUSED, "lagged", "the log grew faster than it could be shown", hint)
        if out.as_json:
            out.say_json(params)
        if method == "log_end":
            break
        show(params.get("text", ""))
    return protocol.EXIT_OK


# ---- events ------------------------------------------------------------------------------------


def events(session: Session, options: argparse.Namespace) -> int:
    """The journal so far, unless only what comes is asked for; then what comes."""
    out = session.out

    names = getattr(options, "names", [])  # of `watch`

    def show(batch: list[dict[str, Any]]) -> None:
        if names:
            batch = [event for event in batch if event.get("dag") in names or event.get("job") in names]
        if out.as_json:
            for event in batch:
                out.say_json(event)
        elif batch:
            out.say("\n".join(map(words.event_line, batch)))

    last_id: int | None = None
    if options.since is None and options.number is not None:
        last_id = _show_newest(session, options.number, show)
    elif options.since is not None or not options.follow:
        since = options.since or 0
        last_id = _page_through(session, since, show) or max(since - 1, 0)
    if options.follow:
        follow_events(session, last_id, show)
    return protocol.EXIT_OK


def _show_newest(session: Session, number: int, show: Any) -> int:
    """Show so many of the newest events; returns the newest id. It can be counted back from: ids have no gaps."""
    newest: int = session.subscribe()
    session.reconnect()  # only the id was wanted
    if number:
        page = {"since": max(0, newest - number), "limit": number}
        show([event for event in session.call("events", page)["events"] if event["id"] > newest - number])
    return newest


def _page_through(session: Session, since: int, show: Any) -> int | None:
    """Show all events from `since` on; returns the last id, or None if there was none."""
    last_id: int | None = None
    while not session.out.reader_left:
        start = since if last_id is None else last_id
        page = session.call("events", {"since": start, "limit": EVENTS_PER_PAGE})["events"]
        fresh = [event for event in page if last_id is None or event["id"] > last_id]
        if not fresh:
            break
        show(fresh)
        last_id = fresh[-1]["id"]
    return last_id


def follow_events(session: Session, last_id: int | None, show: Any) -> None:
    """Show what comes after `last_id` (None: from now on) until nobody reads it. A lag is made up for by id."""
    session.subscribe(last_id)
    while session.out.wait_for(session.client):
        method, event = session.client.notification() or ("", {})
        if method == "lagged":
            session.reconnect()
            session.subscribe(last_id)
        elif method == "event" and (last_id is None or event["id"] > last_id):
            last_id = event["id"]
            show([event])


def watch(session: Session, options: argparse.Namespace) -> int:
    if not session.out.live:  # nobody looks: the same news, line by line
        options.follow, options.since, options.number = True, None, None
        return events(session, options)
    from ctl.board import Board

    Board(session, options.names, options.run).show()
    return protocol.EXIT_OK


# ---- about the daemon --------------------------------------------------------------------------


def ping(session: Session, _options: argparse.Namespace) -> int:
    result = session.call("ping", {})
    if session.out.as_json:
        session.out.say_json(result)
    else:
        session.out.say(words.clean(f"jobd {result['version']} answers, pid {result['pid']}"))
    return protocol.EXIT_OK


def version(session: Session, _options: argparse.Namespace) -> int:
    if not session.out.as_json:
        session.out.say(f"jobctl {protocol.VERSION}")
    result = session.call("version", {})
    if session.out.as_json:
        session.out.say_json(result | {"jobctl": protocol.VERSION})
    else:
        session.out.say(words.clean(f"jobd {result['version']}"))
    return protocol.EXIT_OK


def validate(session: Session, options: argparse.Namespace) -> int:
    """Let the daemon's own program check a file; no daemon need run."""
    report = _check(options.file)
    out = session.out
    if out.as_json:
        out.say_json(report)
    else:
        lines = [problem_line("error", problem) for problem in report["errors"]]
        lines += [problem_line("warning", problem) for problem in report.get("warnings", [])]
        count = len(report["errors"])
        lines.append("the configuration is right" if report["ok"] else f"{count} error{'s' * (count != 1)}")
        out.say("\n".join(lines))
    return protocol.EXIT_OK if report["ok"] else protocol.EXIT_CONFIG


def problem_line(kind: str, problem: dict[str, Any]) -> str:
    place = ":".join(str(problem[key]) for key in ("file", "line") if problem.get(key))
    return words.clean(": ".join(filter(None, [place, kind, problem.get("where"), problem["message"]])))


def _check(file: str | None) -> dict[str, Any]:
    import subprocess
    from pathlib import Path

    # -P and this path: the jobd that belongs to this jobctl, whatever lies in the current folder.
    root = str(Path(protocol.__file__).absolute().parent.parent)
    python_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "supervisor", *(["-c", file] if file else [])]
    command += ["--check", "--log-format", "json"]
    environ = {**os.environ, "PYTHONPATH": python_path}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=VALIDATE_TIMEOUT_S, env=environ
        )
        report: dict[str, Any] = json.loads(done.stdout)
        return report
    except subprocess.TimeoutExpired:
        message, hint = f"the check took more than {VALIDATE_TIMEOUT_S:g} s", "is the file on a slow or dead mount?"
    except ValueError:
        message = f"the check gave no report and ended with {done.returncode}"
        hint = (done.stderr.strip().splitlines() or ["try `jobd --check` itself"])[-1]
    raise Failure(protocol.EXIT_REFUSED, "bug", message, hint)
