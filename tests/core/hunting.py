"""How a planted bug is looked for: world after world, until one of them breaks a promise in the expected words."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

#: Worlds in which a bug may hide at most.
MAX_SEEDS = 300

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]


def hunt(mutation: Mutation, words: str, live: Callable[[int], object], patch: Patch) -> None:
    """Plant the bug and live through worlds; `live` takes a seed and raises what is wrong."""
    mutation(patch)
    for seed in range(MAX_SEEDS):
        try:
            live(seed)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            assert re.search(words, told), f"seed {seed} noticed something else: {told}"
            return
    pytest.fail(f"{mutation.__name__} survived {MAX_SEEDS} worlds")
