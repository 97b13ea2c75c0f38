"""Large packages are imported when something of them is used."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mlx_guarded_llm.engine import lazy_import
from mlx_guarded_llm.engine.lazy_import import OPTIONAL, lazily_imported

NAME = "detectron2"  # one that no environment of ours has
Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes the package of the name, with this code."""
    assert NAME in OPTIONAL
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(lazy_import, "_used", set())

    def make(code: str) -> None:
        (tmp_path / NAME).mkdir()
        (tmp_path / NAME / "__init__.py").write_text(code)
        (tmp_path / NAME / "part.py").write_text("inner = 'part'")
        importlib.invalidate_caches()

    yield make
    for name in [NAME, f"{NAME}.part"]:
        sys.modules.pop(name, None)


def test_it_is_imported_when_it_is_used(install: Install) -> None:
    install("value = object()")
    with lazily_imported():
        lazy = importlib.import_module(NAME)
        assert importlib.import_module(NAME) is lazy
        assert "value" not in vars(lazy)
        assert lazy.__file__ is not None and lazy.__file__.endswith("__init__.py")
    assert NAME not in sys.modules
    real = importlib.import_module(NAME)
    assert real is not lazy and "value" in vars(real)
    assert lazy.value is real.value
    assert not hasattr(lazy, "another")


def test_using_it_later_imports_it(install: Install) -> None:
    install("value = 1")
    with lazily_imported():
        lazy = importlib.import_module(NAME)
    assert lazy.value == 1
    assert "value" in vars(sys.modules[NAME])


@pytest.mark.parametrize(
    "statement",
    ["from {} import value", "import {}.part", "from {} import part", "from {} import *"],
)
def test_a_part_of_it_is_asked_for_at_once(install: Install, statement: str) -> None:
    install("value = 1")
    with lazily_imported():
        importlib.import_module(NAME)
        exec(statement.format(NAME), {})
    assert sys.modules[NAME].value == 1


def test_it_is_run_once(install: Install) -> None:
    install("import sys\nsys._times = getattr(sys, '_times', 0) + 1\nvalue = 1")
    try:
        with lazily_imported():
            lazy = importlib.import_module(NAME)
            assert lazy.value == 1
            assert importlib.import_module(NAME).value == lazy.value == 1
        importlib.import_module(f"{NAME}.part")
        assert vars(sys)["_times"] == 1
    finally:
        vars(sys).pop("_times", None)


def test_whoever_imports_a_broken_one_afterwards_hears_of_it(install: Install) -> None:
    install("raise OSError('broken')")
    with lazily_imported():
        lazy = importlib.import_module(NAME)
    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            importlib.import_module(NAME)
        with pytest.raises(OSError, match="broken"):
            print(lazy.value)


def test_one_that_is_not_there(install: Install) -> None:
    with lazily_imported(), pytest.raises(ModuleNotFoundError):
        importlib.import_module(NAME)


def test_other_threads_import_it_at_once(install: Install) -> None:
    install("value = 1")
    found: list[ModuleType] = []
    with lazily_imported():
        thread = threading.Thread(target=lambda: found.append(importlib.import_module(NAME)))
        thread.start()
        thread.join()
        assert "value" in vars(found[0])
    assert sys.modules[NAME] is found[0]


def test_two_threads_at_once(install: Install) -> None:
    install("value = 1")
    with lazily_imported():
        first = importlib.import_module(NAME)
        seen: list[int] = []

        def other() -> None:
            with lazily_imported():
                seen.append(importlib.import_module(NAME).value)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen == [1] and first.value == 1
    assert "value" in vars(sys.modules[NAME])
