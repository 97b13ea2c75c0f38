"""A lower layer never imports a higher one, not even late or for its types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlx_guarded_llm

ROOT = Path(mlx_guarded_llm.__file__).parent
LAYERS = [("guard", "memory"), ("engine",), ("worker",), ("backend",), ("guarded",), ("cli",)]
RANKS = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}


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
            if top == ROOT.name and rest:
                yield rest.split(".")[0]


@pytest.mark.parametrize("package", RANKS)
def test_imports_go_down(package: str) -> None:
    upwards = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in (ROOT / package).rglob("*.py")
        for name in imported(file)
        if RANKS.get(name, 0) > RANKS[package]
    }
    assert not upwards


def test_the_imports_are_seen() -> None:
    assert {"engine", "worker", "errors"} <= set(imported(ROOT / "backend" / "recovery.py"))
