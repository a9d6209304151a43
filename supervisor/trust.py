"""Whether a file is safe from others: who can replace what root would read, or run?

A leaf: asked by the configuration, by the daemon for its state directory, and by the shim for
programs that it would run as root. Stdlib only.
"""

# pathlib is too large for the small processes
# ruff: noqa: PTH109, PTH115, PTH118, PTH120

from __future__ import annotations

import os
import stat

#: As the kernel's; a path with more is not opened anyway.
MAX_LINKS = 40


def weakness(path: str) -> str | None:
    """Why others than root and ourselves could change what stands at `path`; None if they cannot, or nothing is there.

    Goes from the root step by step as the kernel does, and looks at every folder, at every link on the
    way, and at what stands at the end. A sticky folder (like /tmp) is no weakness: others cannot replace
    what is not theirs.
    """
    at, links = "/", 0  # `at` is never a link
    steps = os.path.join(os.getcwd(), path).split("/")[::-1]
    try:
        problem = _weakness_of(at, os.lstat(at))
        while steps and not problem:
            step = steps.pop()
            if step in ("", ".", ".."):
                at = os.path.dirname(at) if step == ".." else at
                continue
            part = os.path.join(at, step)
            found = os.lstat(part)
            problem = _weakness_of(part, found)
            if not stat.S_ISLNK(found.st_mode):
                at = part
            elif (links := links + 1) <= MAX_LINKS:
                target = os.readlink(part)
                steps += target.split("/")[::-1]
                at = "/" if target.startswith("/") else at
            else:
                return None
    except OSError:
        return None
    return problem


def _weakness_of(path: str, found: os.stat_result) -> str | None:
    is_link = stat.S_ISLNK(found.st_mode)
    if found.st_uid not in _trusted_users():
        chown = "chown -h" if is_link else "chown"
        return f"{path} belongs to user {found.st_uid}, who could change it: {chown} it to root"
    if is_link or (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        return None
    # To root no group is trusted: with an access control list, the group's bits stand for everyone on the list.
    group_counts = os.geteuid() == 0 or found.st_gid != 0
    if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and group_counts):
        return f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o}): chmod go-w it"
    return None


def _trusted_users() -> set[int]:
    """Root, ourselves, and whoever became root by sudo to start us: they could do anything anyway."""
    trusted = {0, os.geteuid()}
    became_root = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and became_root.isdecimal():
        trusted.add(int(became_root))
    return trusted
