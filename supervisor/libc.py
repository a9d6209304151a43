"""The few calls to the C library that Python does not offer, or not whole. Used by the small processes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
#: posix_spawn: set the signal actions, the signal mask, and begin a session.
_SPAWN_FLAGS = 0x04 | 0x08 | 0x80
#: Larger than the opaque types of any C library.
_OPAQUE_BYTES = 1024
_SIGSET_BYTES = 128

_libc = ctypes.CDLL(None, use_errno=True)
_libc.posix_spawnattr_setflags.argtypes = [ctypes.c_char_p, ctypes.c_short]


def become_subreaper(name: bytes) -> None:
    """From now on orphans among the descendants become children of this process, which `ps` shows by this name."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become a child subreaper: Linux 3.4 or later is needed")
    _libc.prctl(PR_SET_NAME, name, 0, 0, 0)


def spawn(path: str, argv: list[str], env: dict[str, str], output_fd: int) -> int:
    """Start a program in a session of its own with stdout and stderr to `output_fd`; its pid, once it is loaded.

    Its signal mask is empty and *all* signals are at their defaults. `os.posix_spawn` can not do this:
    the C library sets two signals of its own to be ignored unless told not to, and Python cannot name them.
    OSError, ValueError.
    """
    actions = ctypes.create_string_buffer(_OPAQUE_BYTES)
    _libc.posix_spawn_file_actions_init(actions)
    _libc.posix_spawn_file_actions_adddup2(actions, output_fd, 1)
    _libc.posix_spawn_file_actions_adddup2(actions, output_fd, 2)
    pid = ctypes.c_int()
    try:
        code = _libc.posix_spawn(
            ctypes.byref(pid),
            os.fsencode(path),
            actions,
            _ATTRIBUTES,
            _strings(argv),
            _strings(f"{name}={value}" for name, value in env.items()),
        )
    finally:
        _libc.posix_spawn_file_actions_destroy(actions)
    if code:
        raise OSError(code, os.strerror(code), path)
    return pid.value


def _strings(texts: Iterable[str]) -> ctypes.Array[ctypes.c_char_p]:
    """A null-terminated array, as in argv."""
    encoded = [os.fsencode(text) for text in texts]
    if any(b"\0" in text for text in encoded):
        raise ValueError("embedded null byte")
    return (ctypes.c_char_p * (len(encoded) + 1))(*encoded, None)


def _attributes() -> ctypes.Array[ctypes.c_char]:
    attributes = ctypes.create_string_buffer(_OPAQUE_BYTES)
    _libc.posix_spawnattr_init(attributes)
    _libc.posix_spawnattr_setflags(attributes, _SPAWN_FLAGS)
    _libc.posix_spawnattr_setsigmask(attributes, bytes(_SIGSET_BYTES))
    _libc.posix_spawnattr_setsigdefault(attributes, b"\xff" * 8 + bytes(_SIGSET_BYTES - 8))
    return attributes


_ATTRIBUTES = _attributes()
