"""Whether a file is safe from others: who can replace what root would read, or run?

A leaf: asked by the configuration, by the daemon for its state directory, and by the shim for
programs that it would run as root. Stdlib only.
"""

# pathlib is too large for the small processes
# ruff: noqa: PTH100, PTH116, PTH120

from __future__ import annotations

import os
import stat


def weakness(path: str) -> str | None:
    """Why others than root and ourselves could change what stands at `path`; None if they cannot, or nothing is there.

    Looks at the file and at every folder above it, along the path as written and along the one that
    links lead to. A sticky folder (like /tmp) is no weakness: others cannot replace what is not theirs.
    """
    checked: set[str] = set()
    for start in (os.path.abspath(path), os.path.realpath(path)):
        part = start
        while part not in checked:
            checked.add(part)
            problem = _weakness_of(part)
            if problem:
                return problem
            part = os.path.dirname(part)
    return None


def _weakness_of(path: str) -> str | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    if found.st_uid not in _trusted_users():
        return f"{path} belongs to user {found.st_uid}, who could change it: chown it to root"
    if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid != 0):
        if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
            return None
        return f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o}): chmod go-w it"
    return None


def _trusted_users() -> set[int]:
    """Root, ourselves, and whoever became root by sudo to start us: they could do anything anyway."""
    trusted = {0, os.geteuid()}
    became_root = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and became_root.isdecimal():
        trusted.add(int(became_root))
    return trusted
