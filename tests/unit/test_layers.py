"""A lower layer never imports a higher one, not even late or for its types."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlx_guarded_llm

ROOT = Path(mlx_guarded_llm.__file__).parent
# From the lowest to the highest; those of one line do not import each other.
LAYERS = [
    ("version", "background", "jsonfile", "back_end", "turns", "holder"),
    ("logs", "results"),
    ("writer",),
    ("errors",),
    ("json_values", "record"),
    ("params", "embed_request", "request", "tool_functions"),
    ("models", "grammar"),
    ("memory", "guard", "display", "tool_check"),
    ("engine",),
    ("worker",),
    ("backend",),
    ("fallback",),
    ("__init__",),
    ("server",),
    ("cli",),
    ("__main__",),
    ("testing",),  # nothing imports it
]
RANKS = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}
# How IPython has a value show itself: the value's method, and the display imported in it.
SHOWN = {("results", "display")}


def names_of(file: Path) -> str:
    """The package, or the module beside the packages, that a file belongs to."""
    return file.relative_to(ROOT).with_suffix("").parts[0]


def imported(file: Path) -> Iterator[str]:
    """The packages of ours that a module imports from, anywhere in it."""
    folders = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (ROOT.name, *folders)[: len(folders) + 2 - node.level] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top != ROOT.name:
                continue
            first = rest.split(".")[0]
            yield first if first in RANKS else "__init__"


@pytest.mark.parametrize("package", RANKS)
def test_imports_go_down(package: str) -> None:
    files = [file for file in ROOT.rglob("*.py") if names_of(file) == package]
    assert files
    upwards = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported(file)
        if name != package and RANKS[name] >= RANKS[package] and (package, name) not in SHOWN
    }
    assert not upwards


def test_everything_has_its_layer() -> None:
    assert {names_of(file) for file in ROOT.rglob("*.py")} == set(RANKS)


def test_the_imports_are_seen() -> None:
    assert {"engine", "worker", "errors"} <= set(imported(ROOT / "backend" / "dispatcher.py"))


@pytest.mark.parametrize("side", ["parent", "child", "rank", ""])
def test_the_sides_of_a_worker_know_only_what_they_share(side: str) -> None:
    folder = ROOT / "worker" / side
    others = {"parent", "child", "rank"} - {side}
    for file in folder.glob("*.py"):
        text = file.read_text()
        assert not [name for name in others if re.search(rf"from [.\w]*\.{name}\b", text)], file
