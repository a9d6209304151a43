"""The daemon: the one place that knows all rooms. Builds them, runs the turn, performs decisions.

No rule of jobs stands here; those are the engine's. Called by `__main__`.
"""

from supervisor.daemon.daemon import Daemon, Paths, SetUpError
from supervisor.daemon.state_dir import HeldError

__all__ = ["Daemon", "HeldError", "Paths", "SetUpError"]
