"""The lock files of what comes from npm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import HERE

FOLDERS = pytest.mark.parametrize("folder", [HERE, HERE.parents[1] / "browser" / "axe"])


@FOLDERS
def test_it_has_every_hash_and_names_no_registry(folder: Path) -> None:
    lock = json.loads((folder / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages and all("integrity" in entry for entry in packages.values())
    assert not [name for name, entry in packages.items() if "resolved" in entry]


@FOLDERS
def test_versions_are_exact(folder: Path) -> None:
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    assert all(version[0].isdecimal() for version in wanted.values())
