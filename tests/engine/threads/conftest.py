"""Backends in this process, whose one MLX thread they share, as applications do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.testing.tiny import make_scripted_model, make_tiny_model
from tests.engine import _backend
from tests.engine._backend import TEXT


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of models by name; "scripted" says `TEXT`, "nan" and "mismatched" are broken."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "tiny", context_window=50_000)
    make_tiny_model(folder / "other", architecture="qwen3", seed=1)
    make_tiny_model(folder / "nan", nan=True)
    make_scripted_model(folder / "scripted", TEXT)
    config = make_tiny_model(folder / "mismatched") / "config.json"
    layers = '"num_hidden_layers": 2', '"num_hidden_layers": 3'
    config.write_text(config.read_text().replace(*layers))
    return folder


@pytest.fixture
def backend(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    monkeypatch.setenv("MLX_GUARDED_CACHE_DIR", str(tmp_path))
    with Backend(isolation="thread", load_wait=0.0, timeout=60.0) as backend:
        yield backend


def active_memory() -> int:
    """Bytes that MLX holds; asked on its thread."""
    with Backend(isolation="thread") as asker:
        return asker.run(_backend.active_memory)
