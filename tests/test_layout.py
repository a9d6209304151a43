"""The import rules: data flows one way, the core is pure, and no room knows another.

The source is read as a syntax tree and never imported, so an import inside a function counts like any other.
So does one under TYPE_CHECKING, except that it makes no circle. `docs/architecture.md` draws the same map.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Modules, and parts of modules, that hold data and act on nothing. The core may import these and itself.
PURE = frozenset(
    """
    __future__ abc bisect calendar collections copy dataclasses datetime difflib enum fractions functools graphlib
    heapq itertools json math operator re signal.Signals string types typing zoneinfo
    cronsim
    """.split()  # noqa: SIM905  a list of words
)
#: Functions that reach out of a pure module without an import.
IMPURE_NAMES = frozenset({"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"})
IMPURE_METHODS = frozenset({"now", "utcnow", "today"})  # of datetime and date: they read the clock

#: A module or package of supervisor/ is a room. These modules are part of another one.
PARTS = {"cli": "__main__", "forkserver": "executor", "pool": "executor", "kept_record": "executor"} | dict.fromkeys(
    (
        "attempt",
        "capture",
        "child",
        "environment",
        "libc",
        "mounts",
        "order",
        "process_tree",
        "program",
        "reaper",
        "record",
        "takeover",
    ),
    "shim",
)
#: Rooms that know nothing of this project; any other room may use them.
LEAVES = frozenset({"loop", "protocol", "shim", "trust"})
#: What stands above the rooms.
ABOVE = frozenset({"__main__", "daemon"})

Tree = Mapping[str, str]  # module name -> source


def read_tree() -> dict[str, str]:
    tree = {}
    for package in ("supervisor", "ctl"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            tree[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return tree


def nodes_of(source: str, *, types_too: bool) -> Iterator[ast.AST]:
    """The nodes of the syntax tree, with or without what stands under `if TYPE_CHECKING`."""
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not types_too:
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)


def base_of(module: str, node: ast.ImportFrom, tree: Tree) -> str:
    """The full name of X in `from X import …`, which may begin with dots."""
    if not node.level:
        return node.module or ""
    is_package = any(name.startswith(module + ".") for name in tree)
    parts = module.split(".")
    parents = parts[: len(parts) - node.level + is_package]
    return ".".join([*parents, *filter(None, [node.module])])


def imports_of(module: str, tree: Tree, *, types_too: bool = True) -> Iterator[str]:
    """What `module` imports, by full name; `from a import b` is a.b if we know a module of that name, else a."""
    for node in nodes_of(tree[module], types_too=types_too):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = base_of(module, node, tree)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in tree or full in PURE else base


def room_of(module: str) -> str | None:
    """Where a module belongs: "core", "store" …; "" for the package supervisor itself, None outside of it."""
    package, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    return PARTS.get(name, name) if package == "supervisor" else None


def is_stdlib(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def is_pure(module: str) -> bool:
    return module in PURE or module.partition(".")[0] in PURE


def wrong_import(module: str, target: str) -> str | None:
    """Why `module` must not import `target`, or None."""
    here, there = room_of(module), room_of(target)
    if module.partition(".")[0] == "ctl":
        if there is not None and target not in ("supervisor", "supervisor.protocol"):
            return "ctl imports only supervisor.protocol of the supervisor"
        return None
    if target.partition(".")[0] == "ctl":
        return "the supervisor does not know its client"
    if here == "core" and there != "core" and not is_pure(target):
        return "the core is pure"
    if here in LEAVES and there not in (here, "", "trust") and not is_stdlib(target):
        return f"{here} is a leaf and imports the standard library only"
    return wrong_direction(module, here, target, there)


def wrong_direction(module: str, here: str | None, target: str, there: str | None) -> str | None:
    """Why an import within supervisor/ runs the wrong way, or None."""
    if there in (None, "", here) or here in ("__main__", "core"):
        return None
    if there == "__main__":
        return "nothing imports __main__"
    if there == "daemon":
        return "only __main__ imports the daemon"
    if here == "daemon":
        return None
    if target == "supervisor.core.engine":
        return "only the daemon imports the engine"
    if there not in LEAVES | {"core"}:
        return "rooms do not import each other"
    return None


def impure_calls(module: str, tree: Tree) -> Iterator[str]:
    for node in ast.walk(ast.parse(tree[module])):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in IMPURE_NAMES:
            yield f"{module}:{node.lineno} calls {node.func.id}: the core is pure"
        if isinstance(node.func, ast.Attribute) and node.func.attr in IMPURE_METHODS:
            owner = ast.unparse(node.func.value).rpartition(".")[2]
            if owner in ("datetime", "date"):
                yield f"{module}:{node.lineno} calls {owner}.{node.func.attr}: time is an argument"


def violations(tree: Tree) -> list[str]:
    """Each rule that is broken, as a sentence with the module's name."""
    found = []
    edges: dict[str, set[str]] = {}
    for module in tree:
        edges[module] = set(imports_of(module, tree, types_too=False)) & tree.keys() - {module}
        for target in sorted(set(imports_of(module, tree))):
            if why := wrong_import(module, target):
                found.append(f"{module} imports {target}: {why}")
        if room_of(module) == "core":
            found += impure_calls(module, tree)
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        found.append("imports run in a circle: " + " -> ".join(reversed(error.args[1])))
    return found


def test_the_tree_keeps_the_rules() -> None:
    tree = read_tree()
    assert {"supervisor", "supervisor.core.model", "supervisor.loop", "ctl"} <= tree.keys()
    assert violations(tree) == []


CLEAN = {
    "supervisor": "__version__ = '1'",
    "supervisor.__main__": "from supervisor import config, daemon",
    "supervisor.daemon": "from supervisor import store\nfrom supervisor.core.engine import Engine",
    "supervisor.config": "import tomli\nfrom .values import Duration",
    "supervisor.config.values": "from supervisor.core.model import Job",
    "supervisor.store": "import sqlite3\nfrom supervisor.core import model",
    "supervisor.executor": "import psutil\nfrom supervisor import shim\nfrom supervisor.record import Record",
    "supervisor.shim": "import ctypes\nfrom supervisor.record import Record",
    "supervisor.record": "import json",
    "supervisor.loop": "import selectors",
    "supervisor.protocol": "import json",
    "supervisor.core": "",
    "supervisor.core.model": "from dataclasses import dataclass",
    "supervisor.core.schedule": "import cronsim\nfrom signal import Signals\ndatetime.fromtimestamp(now.wall, zone)",
    "supervisor.core.engine": "from supervisor.core.model import Job",
    "ctl": "",
    "ctl.cli": "import rich\nfrom supervisor import __version__\nfrom supervisor.protocol import encode",
}


def test_a_clean_tree_has_no_violation() -> None:
    assert violations(CLEAN) == []


@pytest.mark.parametrize(
    ("module", "planted", "rule"),
    [
        ("supervisor.core.model", "import os", "the core is pure"),
        ("supervisor.core.model", "import time", "the core is pure"),
        ("supervisor.core.model", "from random import random", "the core is pure"),
        ("supervisor.core.model", "import msgspec", "the core is pure"),
        ("supervisor.core.model", "import signal", "the core is pure"),
        ("supervisor.core.model", "from signal import Signals, raise_signal", "the core is pure"),
        ("supervisor.core.engine", "def f():\n    import socket", "the core is pure"),
        ("supervisor.core.engine", "from supervisor.loop import Loop", "the core is pure"),
        ("supervisor.core.engine", "from ..store import Store", "the core is pure"),
        ("supervisor.core.engine", "open('x')", "the core is pure"),
        ("supervisor.core.engine", "datetime.now(zone)", "time is an argument"),
        ("supervisor.core.engine", "datetime.date.today()", "time is an argument"),
        ("supervisor.store", "from supervisor import config", "rooms do not import each other"),
        ("supervisor.store", "from .config import values", "rooms do not import each other"),
        ("supervisor.store", "import supervisor.config", "rooms do not import each other"),
        ("supervisor.store", "if TYPE_CHECKING:\n    from .config import Config", "rooms do not import each other"),
        ("supervisor.store", "from supervisor.core.engine import Engine", "only the daemon imports the engine"),
        ("supervisor.store", "from supervisor.daemon import Daemon", "only __main__ imports the daemon"),
        ("supervisor.daemon", "from supervisor import __main__", "nothing imports __main__"),
        ("supervisor.daemon", "import ctl.cli", "does not know its client"),
        ("supervisor.loop", "import psutil", "leaf"),
        ("supervisor.shim", "from supervisor.core.model import Job", "leaf"),
        ("supervisor.record", "import msgspec", "leaf"),
        ("supervisor.protocol", "from supervisor.core.model import State", "leaf"),
        ("ctl.cli", "from supervisor.store import Store", "ctl imports only"),
        ("ctl.cli", "from supervisor.core import model", "ctl imports only"),
        ("supervisor.core.model", "from supervisor.core import engine", "circle"),
    ],
)
def test_a_planted_violation_is_caught(module: str, planted: str, rule: str) -> None:
    found = violations({**CLEAN, module: f"{CLEAN[module]}\n{planted}"})
    assert any(rule in violation and module in violation for violation in found), found
