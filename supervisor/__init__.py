"""jobd: a small daemon that runs a team's shell jobs."""

__version__ = "0.1.0"
