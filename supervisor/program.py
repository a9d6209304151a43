"""Which file a command will run, and whether it can: asked just before it is started. Stdlib only.

A command that cannot start is told from a command that fails. For an argv list that is plain. For
text the shell starts what is named, and would answer a wrong name with its own exit code 127. So
where the text is one simple command, its first word is looked up here; whatever might mean
something else to some shell is left to the shell.
"""

# pathlib is too large for the small processes
# ruff: noqa: PTH109, PTH113, PTH116, PTH118

from __future__ import annotations

import os
import stat

from supervisor.order import UnstartableError
from supervisor.trust import weakness

SHELL = "/bin/sh"
#: Any of these makes a text more than one simple command (or may).
NOT_SIMPLE = frozenset(";&|()`\n")
#: A first word of other characters may be a pattern, an assignment, quoted …
PLAIN_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+-@:,")
_SHELL_WORDS = """
case do done elif else esac fi for function if in select then time until while coproc namespace repeat foreach end
. : alias autoload bg bind break builtin caller cd chdir command compgen complete compopt continue declare dirs
disown echo emulate enable eval exec exit export false fc fg getopts global hash help history integer jobs kill
let limit local logout mapfile nameref newgrp nocorrect noglob popd print printf pushd pwd read readarray readonly
rehash rename return set setopt shift shopt source stop suspend test times trap true type typeset ulimit umask
unalias unfunction unlimit unset unsetopt wait whence where which zmodload
"""
#: First words that are no files: reserved words, and the builtins of dash, bash, ksh, mksh and zsh.
SHELL_WORDS = frozenset(_SHELL_WORDS.split())


def find(command: str | list[str], search_path: str) -> tuple[str, list[str]]:
    """The file to load and its argv. Call it in the job's folder, as the job's user. UnstartableError."""
    if isinstance(command, str):
        word = first_word(command)
        if word:
            _locate(word, search_path)
        return SHELL, [SHELL, "-c", command]
    return _locate(command[0], search_path), command


def first_word(text: str) -> str | None:
    """The program that a shell would look for, or None if that takes a shell to know."""
    if not NOT_SIMPLE.isdisjoint(text):
        return None
    word = text.split(None, 1)[0] if text.strip() else ""
    if not word or not PLAIN_WORD.issuperset(word) or word in SHELL_WORDS:
        return None
    if "/" not in word and _shell_has_programs_inside():
        return None
    return word


def _locate(name: str, search_path: str) -> str:
    if "/" in name:
        problem = _problem(name)
        if problem:
            raise UnstartableError(problem)
        return name
    refused = None
    for folder in search_path.split(":"):
        path = os.path.join(folder, name)
        problem = _problem(path)
        if not problem:
            return path
        if os.path.isfile(path):
            refused = refused or problem
    raise UnstartableError(
        refused or f"no such command: {name}: not in PATH ({search_path}): install it, or give its path"
    )


def _problem(path: str) -> str | None:
    """Why this file cannot be run; None if it can."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return f"no such command: {path} (in {os.getcwd()}): mend the path, or set `dir`"
    except (OSError, ValueError) as error:
        return f"cannot run {path} (in {os.getcwd()}): {error}"
    if not stat.S_ISREG(mode):
        return f"not a program: {path} (in {os.getcwd()}) is not a file"
    if not os.access(path, os.X_OK):
        return f"not executable: {path} (in {os.getcwd()}): chmod +x it, or see who may run it"
    if os.geteuid() == 0 and (problem := weakness(path)):
        return f"not safe to run as root: {problem}, or set `user`"
    return None


def _shell_has_programs_inside() -> bool:
    """Busybox may run its applets without any file of that name."""
    return os.path.realpath(SHELL).endswith("busybox")
