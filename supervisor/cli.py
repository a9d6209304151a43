"""jobd's options, where its files are found, and how it logs. Called by `__main__` only."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from supervisor import __version__, protocol
from supervisor.config import Checked, Config
from supervisor.daemon import Paths

log = logging.getLogger("jobd")


@dataclass(frozen=True, slots=True)
class Options:
    config: Path
    state_dir: Path | None
    socket: str | None
    pid_file: Path | None
    log_format: str
    check: bool


def parse(argv: list[str]) -> Options:
    """Options from the command line. Exits by SystemExit on wrong usage, --help and --version."""
    parser = argparse.ArgumentParser(prog="jobd", description="Runs a team's shell jobs, in the foreground.")
    parser.add_argument("-c", "--config", metavar="FILE", help="the configuration (default: $JOBD_CONFIG)")
    parser.add_argument("--state-dir", metavar="DIR", help="where state and logs are kept")
    parser.add_argument("--socket", metavar="PATH", help="the socket that jobctl talks to")
    parser.add_argument("--pid-file", metavar="PATH", help="write the process id there while running")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of the log on stderr")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit: 0 or 78")
    parser.add_argument("--version", action="version", version=f"jobd {__version__}")
    given = parser.parse_args(argv)
    return Options(
        config=Path(given.config or os.environ.get("JOBD_CONFIG") or _default_config()),
        state_dir=Path(given.state_dir).absolute() if given.state_dir else None,
        socket=os.path.abspath(given.socket) if given.socket else None,  # noqa: PTH100 - jobs get it as text
        pid_file=Path(given.pid_file).absolute() if given.pid_file else None,
        log_format=given.log_format,
        check=given.check,
    )


def find_paths(options: Options, config: Config) -> Paths:
    """Where state, socket and pid file are, in the order of CONTRACT 1."""
    state_dir = options.state_dir or config.daemon.state_dir
    state_dir = state_dir or Path(protocol.default_state_dir(os.environ, os.getuid()))
    configured = str(config.daemon.socket) if config.daemon.socket else None
    socket = options.socket or configured
    socket = socket or protocol.default_socket(os.environ, os.getuid(), str(state_dir))
    return Paths(state_dir=state_dir, socket=socket, pid_file=options.pid_file)


def _default_config() -> str:
    if os.getuid() == 0:
        return "/etc/jobd/jobs.toml"
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return str(Path(home) / "jobd" / "jobs.toml")


# ---- telling ---------------------------------------------------------------------------------------


def print_check(checked: Checked, options: Options) -> int:
    """The result of --check: as text for people, or as CONTRACT 5's `validate` shape with --log-format json."""
    if options.log_format == "json":
        print(json.dumps(check_view(checked)))
    else:
        for problem in checked.errors:
            print(f"error: {problem}", file=sys.stderr)
        for problem in checked.warnings:
            print(f"warning: {problem}", file=sys.stderr)
        if checked.config is not None:
            print(f"{options.config}: ok")
    return 0 if checked.config is not None else 78


def check_view(checked: Checked) -> dict[str, Any]:
    return {
        "ok": checked.config is not None,
        "errors": [asdict(problem) for problem in checked.errors],
        "warnings": [asdict(problem) for problem in checked.warnings],
    }


def log_problems(checked: Checked) -> None:
    for problem in checked.errors:
        log.error("%s", problem)
    for problem in checked.warnings:
        log.warning("%s", problem)


class _TextFormatter(logging.Formatter):
    """One line a message: what others have a say in (reasons, reports) must not look like a line of ours."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging has named it
        record.message = "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode() for each in record.message
        )
        return super().formatMessage(record)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"at": protocol.rfc3339(record.created), "level": record.levelname.lower(), "text": record.getMessage()}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = _TextFormatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_JsonFormatter() if log_format == "json" else text)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
