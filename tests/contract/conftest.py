"""Both frameworks together are a large heap, which each unload of a model would search."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_guarded_llm import Backend, Catalog


@pytest.fixture(scope="package", autouse=True)
def frozen_heap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is imported by now is no garbage: `gc.collect()` need not look at it."""
    folder: Path = tmp_path_factory.mktemp("cache")
    with Backend(catalog=Catalog(cache_dir=folder), offline=True) as backend:
        backend.run(_import_all)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _import_all() -> None:
    import mlx_lm.generate  # noqa: F401


@pytest.fixture
def isolation() -> str:
    """What is above a backend does not know where its engine lives; here no child is needed."""
    return "thread"
