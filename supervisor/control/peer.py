"""Who is at the other end of a socket, by the kernel's word: process, user and groups when it connected.

Knows numbers only; what they may do is the daemon's business. Called by `connection`.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
from typing import NamedTuple

#: asm-generic's number; Python has no name for it. Linux 4.13 or later.
SO_PEERGROUPS = 59
#: What Python's getsockopt takes at most; a gid has 4.
MAX_OPTION_BYTES = 1024
#: The kernel's NGROUPS_MAX.
MAX_GROUPS = 65_536


class Peer(NamedTuple):
    """`groups`: all that it was in, the first one included. The pid may be another's by now; trust it for nothing."""

    pid: int
    uid: int
    groups: frozenset[int]


def peer_of(sock: socket.socket) -> Peer:
    """Never waits. OSError if the socket cannot tell."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return Peer(pid, uid & 0xFFFFFFFF, frozenset({gid & 0xFFFFFFFF, *_further_groups(sock)}))


def _further_groups(sock: socket.socket) -> list[int]:
    """None, where the kernel cannot tell: then the first group alone counts."""
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MAX_OPTION_BYTES)
    except OSError as error:
        return _very_many_groups(sock) if error.errno == errno.ERANGE else []
    return array.array("I", packed).tolist()


def _very_many_groups(sock: socket.socket) -> list[int]:
    """As the above, with a buffer that Python's own function does not allow."""
    import ctypes  # hardly anyone is in so many groups

    gids = (ctypes.c_uint32 * MAX_GROUPS)()
    size = ctypes.c_uint32(ctypes.sizeof(gids))
    libc = ctypes.CDLL(None)
    if libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, gids, ctypes.byref(size)) != 0:
        return []
    return gids[: size.value // ctypes.sizeof(ctypes.c_uint32)]
