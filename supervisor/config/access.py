"""[access]: which unix groups have which role.

A group's number is looked up here, once, when the configuration is read: the answer may come from a
network, and whoever lets clients in must not wait for it. Called through `supervisor.config.keys`.
"""

from __future__ import annotations

import grp
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from supervisor.config.values import BadValueError, matching, shown

_name = matching(re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@\\-]{0,63}\$?"), "the name of a group")


class Group(NamedTuple):
    name: str
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The groups of each role. Whoever may operate may view, and an admin may do both."""

    view: tuple[Group, ...] = ()
    operate: tuple[Group, ...] = ()
    admin: tuple[Group, ...] = ()


def group(value: Any) -> Group:
    """A group that this machine has. An unknown one is an error: whom it was to let in would be refused."""
    name = _name(value)
    try:
        return Group(name, grp.getgrnam(name).gr_gid)
    except KeyError:
        raise BadValueError(f"this machine has no group {shown(name)}; make it with groupadd, or take it out") from None
