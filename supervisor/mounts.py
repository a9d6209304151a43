"""Is there a file system that an access may hang on? Used by the shim. Stdlib only."""

from __future__ import annotations

import os
import select

_WORDS = b"9p afs autofs beegfs ceph cifs coda fuse fuseblk glusterfs gpfs lustre ncpfs nfs nfs4 orangefs smb3 smbfs"
#: Whatever is not named here counts as a local disk. With FUSE, anything may be behind it.
REMOTE_TYPES = frozenset(_WORDS.split())


class Mounts:
    """The mounted file systems. The list is read again only after the kernel says that it has changed."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        self._remote = self._read()

    def any_remote(self) -> bool:
        """True if a network or FUSE file system is mounted anywhere."""
        if self._poll.poll(0):
            self._remote = self._read()
        return self._remote

    def _read(self) -> bool:
        content, at = b"", 0
        while chunk := os.pread(self._fd, 65536, at):
            content, at = content + chunk, at + len(chunk)
        return any(map(_is_remote, content.splitlines()))


def _is_remote(line: bytes) -> bool:
    """One line of mountinfo: … MOUNTPOINT OPTIONS [OPTIONAL…] - TYPE SOURCE …"""
    place, _, rest = line.partition(b" - ")
    if place.split(b" ")[4].startswith(b"/proc/"):
        return False  # systemd has an automount there; it leads to nothing remote
    return rest.split(b" ", 1)[0].partition(b".")[0] in REMOTE_TYPES
