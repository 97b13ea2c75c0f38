"""The page about the architecture names what exists, and all of it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import mlx_guarded_llm

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
TOP = {
    path.stem
    for path in Path(mlx_guarded_llm.__file__).parent.iterdir()
    if not path.name.startswith("__") and (path.is_dir() or path.suffix == ".py")
}
NAMES = sorted(
    name
    for name in set(re.findall(r"`([a-z_]+(?:\.\w+)*)`", PAGE.read_text()))
    if name.split(".")[0] in TOP
)


@pytest.mark.parametrize("name", sorted(TOP))
def test_every_package_and_module_is_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE.read_text()


def test_names_are_found_on_the_page() -> None:
    assert len(NAMES) > 30
    assert "guard.state.Status" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_named_is_there(name: str) -> None:
    module, *rest = name.split(".")
    found = importlib.import_module(f"mlx_guarded_llm.{module}")
    for part in rest:
        if not hasattr(found, part):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
