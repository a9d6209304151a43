"""What a command works with: its output, and a connection that is made when it is first needed.

Called by every command. Knows which options go with every request; not what any command means.
"""

from __future__ import annotations

from ctl.client import REPLY_TIMEOUT_S, Client, find_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctl.output import Output


class Session:
    """One run of jobctl."""

    def __init__(self, socket: str | None, out: Output) -> None:
        self.out = out
        self._path = find_socket(socket)
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = self.connect()
        return self._client

    def connect(self) -> Client:
        """A further connection."""
        return Client(self._path)

    def reconnect(self) -> None:
        if self._client:
            self._client.close()
        self._client = self.connect()

    def call(self, method: str, params: dict[str, Any], timeout_s: float | None = REPLY_TIMEOUT_S) -> dict[str, Any]:
        """Ask the daemon. Params that are None are left to it."""
        return self.client.call(method, {key: value for key, value in params.items() if value is not None}, timeout_s)

    def subscribe(self, since: int | None = None) -> int:
        """From now on (or from that event on) the client gets notifications; returns the id they begin after."""
        begins_after: int = self.call("subscribe", {"since": since})["since"]
        return begins_after
