"""The folder in which the programs of a user find each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_guarded_llm.backend import runtime_folder


@pytest.fixture
def open_mask() -> Iterator[None]:
    """Whatever is made is open to the group, unless it says otherwise."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_mask")
def test_it_is_made_with_what_is_above_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "run"
    monkeypatch.setenv(runtime_folder.VARIABLE, str(place))
    assert runtime_folder.folder() == place and not place.exists()
    for _ in range(2):
        assert runtime_folder.make() == place
    assert {part.stat().st_mode & 0o777 for part in (place, *place.parents[:2])} == {0o700}
