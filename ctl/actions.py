"""The commands that change something, and those that wait: start, stop, mark, report, shutdown, wait …

Each takes the session and its parsed options, and returns the exit code. Called from the table in
`ctl.commands`.
"""

from __future__ import annotations

import os
import time

from ctl import queries, words
from ctl.failure import Failure
from supervisor import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from ctl.session import Session

    Action = Callable[[Session, argparse.Namespace], int]

#: A report from inside a job waits so long for a jobd that is away.
REPORT_PATIENCE_S = 60.0
#: Jobs that are named in one line.
MAX_NAMES = 10
#: `--timeout` is the daemon's to keep; if it does not, the client gives up so much later.
GUARD_S = 5.0


def change(method: str, *fields: str) -> Action:
    """A command about names. Its options of these names go along; it shows what changed, and may wait."""

    def action(session: Session, options: argparse.Namespace) -> int:
        params = {field: getattr(options, field) for field in ("names", "run", "dry_run", "request_id", *fields)}
        result = session.call(method, {key: value for key, value in params.items() if value is not False})
        waits = getattr(options, "wait", False) and not options.dry_run
        if not (waits and session.out.as_json):  # one document: then it is the wait's
            show_change(session, result, dry_run=options.dry_run)
        if not waits:
            return protocol.EXIT_OK
        names, run = _to_wait_for(options, result)
        return wait_for(session, names, run, options.timeout, any_end=method == "stop")

    return action


def show_change(session: Session, result: dict[str, Any], *, dry_run: bool) -> None:
    if session.out.as_json:
        session.out.say_json(result)
        return
    lines = words.change_lines(result, dry_run=dry_run)
    if result.get("note"):
        lines.append(words.clean(result["note"]))
    session.out.say("\n".join(lines))


def _to_wait_for(options: argparse.Namespace, result: dict[str, Any]) -> tuple[list[str], str | None]:
    """What `--wait` waits for: the names that were given, in the run that was acted on."""
    return options.names, result.get("run") or options.run


def report(session: Session, options: argparse.Namespace) -> int:
    """From inside a job the environment says which attempt; --job says it from outside."""
    job, run, attempt = options.job, options.run, options.attempt
    inside = os.environ.get("JOBD_JOB")
    if job in (None, inside) and inside:
        job = inside
        run = run or os.environ.get("JOBD_RUN")
        number = os.environ.get("JOBD_ATTEMPT", "")
        attempt = attempt or (int(number) if number.isdigit() else None)
    if not job:
        message, hint = "report on which job?", "name it with --job; inside a job, $JOBD_JOB says it"
        raise Failure(protocol.EXIT_USAGE, "usage", message, hint)
    if options.outcome == "data" and options.data is None:
        raise Failure(protocol.EXIT_USAGE, "usage", "report data: how much?", "say it with --data N")
    params = {"outcome": options.outcome, "job": job, "run": run, "attempt": attempt, "data": options.data}
    params |= {"message": options.message, "request_id": options.request_id or f"report-{os.urandom(16).hex()}"}
    result = _report(session, params, patience_s=REPORT_PATIENCE_S if inside else 0.0)
    if session.out.as_json:
        session.out.say_json(result)
    else:
        amount = "" if options.data is None else f", {options.data} of data"
        session.out.say(words.clean(f"{job}: {options.outcome} reported{amount}"))
    return protocol.EXIT_OK


def _report(session: Session, params: dict[str, Any], patience_s: float) -> dict[str, Any]:
    """From inside a job: jobd may be restarting. A repeat is harmless by its request id."""
    deadline, wait_s = time.monotonic() + patience_s, 0.1
    while True:
        try:
            session.reconnect()
            return session.call("report", params)
        except Failure as failure:
            if failure.exit_code != protocol.EXIT_UNREACHABLE or time.monotonic() + wait_s > deadline:
                raise
        time.sleep(wait_s)
        wait_s = min(wait_s * 2, 2.0)


def reload(session: Session, options: argparse.Namespace) -> int:
    result = session.call("reload", {"dry_run": options.dry_run or None, "request_id": options.request_id})
    errors = result.get("errors") or []
    if session.out.as_json and not errors:
        session.out.say_json(result)
    elif not session.out.as_json:
        lines = [f"{mark} {words.clean(name)}" for mark, key in (("+", "added"), ("-", "removed"), ("~", "changed"))
                 for name in result.get(key) or []]  # fmt: skip
        lines += [queries.problem_line("error", error) for error in errors]
        unchanged = result.get("unchanged") or []
        lines.append(f"{unchanged if isinstance(unchanged, int) else len(unchanged)} unchanged")
        session.out.say("\n".join(lines))
    if errors:
        message = f"the configuration has {len(errors)} error{'s' * (len(errors) != 1)}; the old one stays"
        raise Failure(protocol.EXIT_CONFIG, "config", message, "put it right, and reload again", result)
    return protocol.EXIT_OK


def shutdown(session: Session, options: argparse.Namespace) -> int:
    params = {"stop_jobs": options.stop_jobs or None, "drain": options.drain or None}
    result = session.call("shutdown", params | {"request_id": options.request_id}, timeout_s=None)
    if session.out.as_json:
        session.out.say_json(result)
    else:
        what = "stops all jobs, then leaves" if options.stop_jobs else "leaves; running jobs go on"
        what = "lets running jobs finish, then leaves" if options.drain else what
        names = result.get("waits_for") or []
        if names and (options.drain or options.stop_jobs):
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            what += f"; waits for {', '.join(names[:MAX_NAMES])}{more}"
        session.out.say(words.clean(f"jobd {what}"))
    return protocol.EXIT_OK


# ---- waiting -----------------------------------------------------------------------------------


def wait(session: Session, options: argparse.Namespace) -> int:
    return wait_for(session, options.names, options.run, options.timeout)


def wait_for(
    session: Session, names: list[str], run: str | None, timeout_s: float | None, *, any_end: bool = False
) -> int:
    """Wait until it has ended; the exit code is the outcome's. `any_end`: whatever the outcome."""
    params = {"names": names, "run": run, "timeout_s": timeout_s}
    guard_s = None if timeout_s is None else timeout_s + GUARD_S
    try:
        if session.out.live:
            from ctl.board import Board

            result = Board(session, names, run).show_until("wait", params, guard_s)
        else:
            result = session.call("wait", params, guard_s)
    except KeyboardInterrupt:
        message = "interrupted; the jobs go on"
        hint = "`jobctl wait` waits again, `jobctl stop` stops them"
        raise Failure(protocol.EXIT_INTERRUPTED, "interrupted", message, hint) from None
    if session.out.as_json:
        session.out.say_json(result)
    else:
        _show_end(session, names, run, result)
    return protocol.EXIT_OK if any_end or _succeeded(result, names) else protocol.EXIT_REFUSED


def _show_end(session: Session, names: list[str], run: str | None, result: dict[str, Any]) -> None:
    """How all jobs stand; if the daemon cannot tell that any more, at least what was waited for."""
    try:
        session.reconnect()  # the connection may be old, and the daemon another one since
        result = session.call("status", {"names": names, "run": run})
    except Failure:
        pass
    queries.show_status(session, result)


def _succeeded(result: dict[str, Any], names: list[str]) -> bool:
    """Whether all that was waited for is a success: each named job, the run of each named dag; else each run."""
    runs, jobs = result.get("runs", []), result.get("jobs", [])
    if not names:
        return all(run["state"] == "success" for run in runs)
    states = [job["state"] for job in jobs if job["job"] in names]
    states += [run["state"] for run in runs if run["dag"] in names]
    return all(state == "success" for state in states)
