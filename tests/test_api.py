"""What a wrong request is told: briefly, however long it was."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor import api, protocol

LONG = "x" * 60_000


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (LONG, {}),
        ("logs", {"job": "a", LONG: 1}),
        ("start", {"names": ["a"], "date": LONG}),
        ("start", {"names": ["a"], "reason": LONG}),
        ("start", {"names": LONG}),
    ],
)
def test_what_was_sent_is_repeated_in_part(method: str, params: dict[str, Any]) -> None:
    with pytest.raises(api.ParamsError) as caught:
        api.decode(method, params)
    assert len(str(caught.value)) < 2 * protocol.MAX_ECHO
    assert len(caught.value.hint) < 400


def test_a_method_that_is_nearly_right_is_guessed() -> None:
    with pytest.raises(api.ParamsError, match="no method 'statsu'") as caught:
        api.decode("statsu", {})
    assert caught.value.hint == "did you mean status?"
