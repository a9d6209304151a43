"""The table of all commands: what each says of itself, its options, and the function that does it.

Called by `ctl.cli`, which parses the options and maps failures to exit codes. A new command is an entry
here and a function in `ctl.queries` or `ctl.actions`.
"""

from __future__ import annotations

from ctl import actions, queries, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from ctl.session import Session

    Arguments = Callable[[argparse.ArgumentParser], None]
    Action = Callable[[Session, argparse.Namespace], int]


class Command:
    """One command of jobctl."""

    def __init__(self, group: str, usage: str, summary: str, arguments: Arguments, action: Action) -> None:
        self.group = group
        self.usage = usage  # for the list of commands
        self.summary = summary
        self.arguments = arguments
        self.action = action


# ---- options -----------------------------------------------------------------------------------


def duration(text: str) -> float:
    from argparse import ArgumentTypeError

    try:
        return words.parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    from argparse import ArgumentTypeError

    if not (text.isascii() and text.isdigit()):
        raise ArgumentTypeError(f'"{text}" is not a number from 0 on')
    return int(text)


def date(text: str) -> str:
    from argparse import ArgumentTypeError
    from datetime import datetime

    try:
        return datetime.strptime(text, "%Y-%m-%d").strftime("%Y-%m-%d")
    except ValueError:
        raise ArgumentTypeError(f'"{text}" is no date: write YYYY-MM-DD') from None


def nothing(_parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def _names(parser: argparse.ArgumentParser, least: str = "*") -> None:
    parser.add_argument("names", metavar="NAME", nargs=least, help="a job or a dag; none = every dag")
    parser.add_argument("--run", metavar="RUN", help="the run that is meant; default: the newest")


def _timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", metavar="D", type=duration, help="stop waiting after so long, with exit code 124")


def _dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="show what would change, change nothing")


def _request_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--request-id", metavar="ID", help="a repeat with the same ID does nothing and answers the same"
    )


def _change(parser: argparse.ArgumentParser, least: str = "*", *, waits: bool = False) -> None:
    _names(parser, least)
    if waits:
        parser.add_argument("--wait", action="store_true", help="wait until it has ended; exit by outcome")
        _timeout(parser)
    _dry_run(parser)
    _request_id(parser)


def _start(parser: argparse.ArgumentParser) -> None:
    _change(parser, waits=True)
    parser.add_argument("--force", action="store_true", help="ignore needs, time and slots")
    parser.add_argument("--date", metavar="D", type=date, help="the run date of a new run, YYYY-MM-DD")


def _stop(parser: argparse.ArgumentParser) -> None:
    _change(parser, waits=True)
    parser.add_argument("--now", action="store_true", help="KILL at once")


def _retry(parser: argparse.ArgumentParser) -> None:
    _change(parser, waits=True)
    parser.add_argument("--downstream", action="store_true", help="all that comes after them as well")


def _restart(parser: argparse.ArgumentParser) -> None:
    _change(parser, waits=True)


def _hold(parser: argparse.ArgumentParser) -> None:
    _change(parser, "+")
    parser.add_argument("--reason", metavar="T", help="why, for whoever looks later")


def _named_change(parser: argparse.ArgumentParser) -> None:
    _change(parser, "+")


def _mark(parser: argparse.ArgumentParser) -> None:
    _change(parser, "+")
    parser.add_argument("outcome", metavar="OUTCOME", choices=("success", "failed"), help="success or failed")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("outcome", metavar="OUTCOME", choices=("success", "failed", "data"), help="%(choices)s")
    parser.add_argument("--job", metavar="NAME", help="default: the job that this is called from ($JOBD_JOB)")
    parser.add_argument("--run", metavar="RUN", help="default: the job's own, else the newest")
    parser.add_argument("--attempt", metavar="K", type=count, help="default: the job's own, else the one under way")
    parser.add_argument("--data", metavar="N", type=count, help="the amount of data")
    parser.add_argument("--message", metavar="T", help="a word about it")
    _request_id(parser)


def _status(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("--all", action="store_true", help="every job, however many")
    parser.add_argument("--quiet", action="store_true", help="no text; exit 1 if a job failed, is lost or blocked")


def _wait(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    _timeout(parser)


def _watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="DAG", nargs="*", help="default: every dag")
    parser.add_argument("--run", metavar="RUN", help="default: the newest")


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a job")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the attempt ends")
    parser.add_argument("-n", "--number", metavar="N", type=count, help="the last N lines; default 1000")
    parser.add_argument("--attempt", metavar="K", type=count, help="default: the newest")
    parser.add_argument("--run", metavar="RUN", help="default: the newest")


def _events(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="wait for more; without --since or -n only for new")
    parser.add_argument("-n", "--number", metavar="N", type=count, help="only the last N")
    parser.add_argument("--since", metavar="ID", type=count, help="from this event on")


def _history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="a job or a dag; none = all")
    parser.add_argument("-n", "--number", metavar="N", type=count, help="the newest N attempts; default 100")
    parser.add_argument("--since", metavar="D", type=duration, help='how far back: "2h", "7d"')


def _validate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="default: the file that jobd would read")


def _reload(parser: argparse.ArgumentParser) -> None:
    _dry_run(parser)
    _request_id(parser)


def _shutdown(parser: argparse.ArgumentParser) -> None:
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--stop-jobs", action="store_true", help="stop running jobs first")
    ways.add_argument("--drain", action="store_true", help="let running jobs finish first, start nothing")
    _request_id(parser)


RUN, SET, LOOK, DAEMON = "run jobs", "set by hand", "look", "the daemon"
NAMES, change = "[NAME...]", actions.change

COMMANDS = {
    "start": Command(RUN, NAMES, "start it, or go on from where it stands", _start, change("start", "force", "date")),
    "stop": Command(RUN, NAMES, "stop it; its state is kept", _stop, change("stop", "now")),
    "retry": Command(RUN, NAMES, "queue what failed or was lost again", _retry, change("retry", "downstream")),
    "restart": Command(RUN, NAMES, "a new run from scratch, or a job once more", _restart, change("restart")),
    "wait": Command(RUN, NAMES, "wait until it has ended; exit by outcome", _wait, actions.wait),
    "hold": Command(SET, "NAME...", "start nothing new of it until release", _hold, change("hold", "reason")),
    "release": Command(SET, "NAME...", "end a hold", _named_change, change("release")),
    "skip": Command(SET, "NAME...", "pass over jobs; what needs them goes on", _named_change, change("skip")),
    "mark": Command(SET, "NAME... success|failed", "set the outcome of jobs", _mark, change("mark", "outcome")),
    "report": Command(SET, "success|failed|data", "from inside a job: how it went", _report, actions.report),
    "status": Command(LOOK, NAMES, "all jobs, dag by dag", _status, queries.status),
    "watch": Command(LOOK, "[DAG...]", "live board, until q or Ctrl-C", _watch, queries.watch),
    "logs": Command(LOOK, "NAME", "the output of a job", _logs, queries.logs),
    "history": Command(LOOK, NAMES, "past attempts", _history, queries.history),
    "events": Command(LOOK, "", "the journal, one event a line", _events, queries.events),
    "ping": Command(DAEMON, "", "is it there", nothing, queries.ping),
    "version": Command(DAEMON, "", "versions of jobctl and jobd", nothing, queries.version),
    "validate": Command(DAEMON, "[FILE]", "check a configuration, without a daemon", _validate, queries.validate),
    "reload": Command(DAEMON, "", "read the configuration again", _reload, actions.reload),
    "shutdown": Command(DAEMON, "", "end it; running jobs go on", _shutdown, actions.shutdown),
}
