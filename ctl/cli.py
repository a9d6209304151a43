"""jobctl: arguments to a command, its failure to one line on stderr and an exit code.

Owns the global options, the help, and the map from error to exit code. What the commands are stands in
`ctl.commands`. Called by the script `jobctl`. Only what every start needs is imported here.
"""

from __future__ import annotations

import argparse
import os
import sys

from ctl.commands import COMMANDS, Command
from ctl.failure import Failure
from ctl.output import Output
from ctl.session import Session
from supervisor import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

EPILOG = """\
Exit codes: 0 done; 1 refused, or waited for and no success; 2 usage; 3 daemon not reachable;
4 no such name; 5 not permitted; 78 configuration wrong; 124 --timeout passed.
`jobctl COMMAND --help` tells more."""


class Parser(argparse.ArgumentParser):
    """Wrong usage is a Failure like any other. The width is given, lest every start import shutil for it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_format, **settings)

    def error(self, message: str) -> NoReturn:
        hint = f"see `{self.prog} --help`"
        if message.startswith("unrecognized arguments: -"):
            near = protocol.nearest(message.split()[2], self._option_string_actions)
            hint = f"did you mean {near}? {hint}" if near else hint
        raise Failure(protocol.EXIT_USAGE, "usage", message, hint)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):  # a caller may have closed them
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return _run(arguments)
    except Failure as failure:
        _tell(failure, as_json="--json" in arguments)
        return failure.exit_code
    except KeyboardInterrupt:
        return protocol.EXIT_INTERRUPTED


def _run(arguments: list[str]) -> int:
    front = _front_parser()
    options = front.parse_args(arguments)
    if options.help:
        Output().say(_help())
        return protocol.EXIT_OK
    if options.version:
        Output().say(f"jobctl {protocol.VERSION}")
        return protocol.EXIT_OK
    command = _find(options.command)
    parser = _parser_of(options.command, command)
    options = parser.parse_intermixed_args(options.rest, options)
    out = Output(as_json=options.json, color=options.color)
    return command.action(Session(options.socket, out), options)


def _find(name: str | None) -> Command:
    if name is None:
        raise Failure(protocol.EXIT_USAGE, "usage", "no command", "see `jobctl --help`")
    if name not in COMMANDS:
        near = protocol.nearest(name, COMMANDS)
        hint = f"did you mean `jobctl {near}`?" if near else "see `jobctl --help`"
        raise Failure(protocol.EXIT_USAGE, "usage", f'unknown command "{name}"', hint)
    return COMMANDS[name]


def _tell(failure: Failure, *, as_json: bool) -> None:
    from ctl import words

    line = ": ".join(filter(None, ["jobctl", failure.message, failure.hint]))
    try:
        print(words.clean(line), file=sys.stderr, flush=True)
        if as_json and failure.kind != "output":
            error = {"kind": failure.kind, "message": failure.message, "hint": failure.hint}
            Output(as_json=True).say_json({"error": error, **failure.answer})
    except (OSError, Failure):
        pass  # nobody hears it; the exit code still tells


def _format(prog: str) -> argparse.HelpFormatter:
    try:
        width = os.get_terminal_size().columns
    except OSError:
        width = 80
    return argparse.HelpFormatter(prog, width=max(40, width - 2))


# ---- parsers -----------------------------------------------------------------------------------


def _front_parser() -> Parser:
    """What may stand before the command. The command has its own parser, with the same globals again."""
    parser = Parser(prog="jobctl", add_help=False)
    parser.set_defaults(socket=None, json=False, color="auto")
    _add_globals(parser)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("command", nargs="?")
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    return parser


def _parser_of(name: str, command: Command) -> Parser:
    parser = Parser(prog=f"jobctl {name}", description=command.summary)
    command.arguments(parser)
    _add_globals(parser.add_argument_group("everywhere"))
    return parser


def _add_globals(parser: argparse._ActionsContainer) -> None:
    absent = argparse.SUPPRESS  # so that the command's parser does not undo what stood before the command
    parser.add_argument("--socket", metavar="PATH", default=absent, help="the daemon's; default $JOBD_SOCKET")
    parser.add_argument("--json", action="store_true", default=absent, help="one JSON document on stdout")
    parser.add_argument("--color", choices=("auto", "always", "never"), default=absent, help="default: auto")


def _help() -> str:
    lines = ["usage: jobctl [--socket PATH] [--json] [--color auto|always|never] COMMAND ...", ""]
    group = ""
    for name, command in COMMANDS.items():
        if command.group != group:
            group = command.group
            lines += ["", f"{group}:"] if lines[-1] else [f"{group}:"]
        lines.append(f"  {name + ' ' + command.usage:<29} {command.summary}")
    return "\n".join([*lines, "", EPILOG])


if __name__ == "__main__":
    sys.exit(main())
