"""The diagram of states in the documents is the one that the table of moves makes."""

from __future__ import annotations

import re
from pathlib import Path

from supervisor.core.transitions import diagram

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"


def test_the_diagram_in_the_architecture_page_is_made_from_the_table() -> None:
    """To mend it: python -c 'from supervisor.core.transitions import diagram; print(diagram())'"""
    [shown] = re.findall(r"<!-- states -->\n```mermaid\n(.*?)\n```\n<!-- /states -->", PAGE.read_text(), re.DOTALL)
    assert shown == diagram().strip()
