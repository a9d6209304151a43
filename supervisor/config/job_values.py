"""How the values that only jobs have are read: command, environment, needs, stop signal.

Called through `supervisor.config.keys`.
"""

from __future__ import annotations

import re
import signal
from collections import Counter
from typing import Any

from supervisor.config.values import NAME, BadValueError, each, kind_of, shown, suggestion
from supervisor.core.model import Need, Outcome

MAX_COMMAND_BYTES = 131_071  # what Linux takes as one argument
MAX_ARGUMENTS = 1_000
MAX_ENV_BYTES = 64 * 1024  # names and values of one job, defaults included
MAX_NEEDS = 5_000  # of one job, all groups together
STOP_SIGNALS = ("TERM", "INT", "HUP", "QUIT", "KILL", "USR1", "USR2", "ALRM", "ABRT", "WINCH")

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


def stop_signal(value: Any) -> int:
    """A signal's number, from "TERM" or "SIGTERM"."""
    short = value.removeprefix("SIG") if isinstance(value, str) else value
    if short not in STOP_SIGNALS:
        near = suggestion(value, STOP_SIGNALS) if isinstance(value, str) else ""
        raise BadValueError(f"expected one of {', '.join(STOP_SIGNALS)}, found {shown(value)}{near}")
    return int(signal.Signals["SIG" + short])


def command(value: Any) -> str | tuple[str, ...]:
    """Text is for /bin/sh -c, a list is argv."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise BadValueError(f"expected text for /bin/sh or a list of texts (argv), found {_shown_list(value)}")
    if not words[0].strip():
        raise BadValueError("expected a command, found empty text")
    if any("\0" in word for word in words):
        raise BadValueError("expected a command without NUL characters; take the \\u0000 out")
    if len(words) > MAX_ARGUMENTS:
        raise BadValueError(f"expected at most {MAX_ARGUMENTS} arguments, found {len(words)}")
    length = sum(len(word.encode()) + 1 for word in words) - 1
    if length > MAX_COMMAND_BYTES:
        raise BadValueError(f"expected at most {MAX_COMMAND_BYTES} bytes, found {length}; use a script")
    return value if isinstance(value, str) else tuple(words)


def _shown_list(value: Any) -> str:
    """A list by its first element that is no text."""
    if not isinstance(value, list) or not value:
        return shown(value)
    return f"{shown(next(word for word in value if not isinstance(word, str)))} in the list"


def env(value: Any) -> dict[str, str]:
    """Environment of a job. Values may be secret: no message shows them."""
    if not isinstance(value, dict):
        raise BadValueError(f"expected a table of texts, found {kind_of(value)}")
    reasons = []
    for key, content in value.items():
        if not _ENV_NAME.fullmatch(key):
            reasons.append(f"{shown(key)} cannot be the name of a variable; use letters, digits and _")
        elif key.startswith("JOBD_"):
            reasons.append(f"{key}: names that begin with JOBD_ are set by jobd; choose another")
        if not isinstance(content, str):
            reasons.append(f"{shown(key)}: expected text, found {kind_of(content)}; put it in quotes")
        elif "\0" in content:
            reasons.append(f"{shown(key)}: expected text without NUL characters; take the \\u0000 out")
    if reasons:
        raise BadValueError(*reasons)
    return dict(value)


def needs(value: Any) -> tuple[tuple[Need, ...], ...]:
    """All of the list; an inner list is any of it."""
    if not isinstance(value, list):
        raise BadValueError(f"expected a list of job names, found {shown(value)}")
    if sum(len(group) if isinstance(group, list) else 1 for group in value) > MAX_NEEDS:
        raise BadValueError(f"expected at most {MAX_NEEDS} needs")
    groups: list[tuple[Need, ...]] = []
    reasons: list[str] = []
    for content in value:
        try:
            groups.append(_need_group(content))
        except BadValueError as wrong:
            reasons += wrong.reasons
            groups.append(())  # keeps the others' places
    if len(set(groups)) < len(groups):
        repeated = [group for group, count in Counter(filter(None, groups)).items() if count > 1]
        reasons += (f"{_shown_group(group)} stands there twice; take one out" for group in repeated)
    if reasons:
        raise BadValueError(*dict.fromkeys(reasons), readable=tuple(groups))
    return tuple(groups)


def _need_group(value: Any) -> tuple[Need, ...]:
    if not isinstance(value, list):
        return (_need(value),)
    if not value:
        raise BadValueError("an inner list means any of its jobs, but this one is empty; name a job or take it out")
    group: tuple[Need, ...] = each(_need, value)
    twice = [job for job, count in Counter(need.job for need in group).items() if count > 1]
    if twice:
        raise BadValueError(*(f'"{job}" stands twice in one inner list; take one out' for job in twice))
    return group


def _need(value: Any) -> Need:
    job, _, outcome = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not NAME.fullmatch(job):
        raise BadValueError(f'expected a job such as "extract" or "extract:failed", found {shown(value)}')
    if ":" not in value:
        return Need(job)
    if outcome not in tuple(Outcome):
        near = suggestion(outcome, tuple(Outcome))
        raise BadValueError(f"{shown(value)}: expected one of {', '.join(Outcome)} after the colon{near}")
    return Need(job, Outcome(outcome))


def _shown_group(group: tuple[Need, ...]) -> str:
    return " or ".join(shown(need.job if need.outcome == "success" else f"{need.job}:{need.outcome}") for need in group)
