from __future__ import annotations

from pathlib import Path

import pytest

import mlx_guarded_llm
from mlx_guarded_llm.errors import InvalidRequest, ModelNotFound
from mlx_guarded_llm.models import Progress
from mlx_guarded_llm.testing.tiny import make_tiny_model


def test_models_by_functions(tmp_path: Path) -> None:
    assert "smollm2-135m" in mlx_guarded_llm.aliases()
    folder = make_tiny_model(tmp_path / "m")
    seen: list[Progress] = []
    files = mlx_guarded_llm.pull(folder, context_window=64, on_progress=seen.append)
    assert (files.path, files.context_window) == (folder, 64)
    with pytest.raises(InvalidRequest, match="your own folder"):
        mlx_guarded_llm.rm(folder)
    with pytest.raises(ModelNotFound):
        mlx_guarded_llm.pull("nothing-of-that-name")
