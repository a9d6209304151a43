"""The control socket. `server` owns it and the open requests, `connection` one client's bytes and limits."""

from supervisor.control.peer import Peer
from supervisor.control.server import Control, ControlError, Request

__all__ = ["Control", "ControlError", "Peer", "Request"]
