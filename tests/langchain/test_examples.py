"""The examples in the docstrings run. Small models stand for the ones they name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_guarded_llm import Catalog, default_backend
from tests._examples import example_of
from tests.conftest import MakeModel

EXAMPLES = [
    ("langchain_mlx_guarded", ""),
    ("langchain_mlx_guarded.chat_models", "ChatMLXGuarded"),
    ("langchain_mlx_guarded.chat_models", "ChatMLXGuarded.bind_tools"),
    ("langchain_mlx_guarded.chat_models", "ChatMLXGuarded.with_structured_output"),
    ("langchain_mlx_guarded.embeddings", "MLXGuardedEmbeddings"),
    ("langchain_mlx_guarded.candidate", "LangChainCandidate"),
    ("langchain_mlx_guarded.middleware", "GuardedModelMiddleware"),
    ("langchain_mlx_guarded.structured", "ObjectParser"),
]


@pytest.fixture
def shared_backend(
    tmp_path: Path, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The process's own, where the names of the examples are small models."""
    aliases = tmp_path / "models.toml"
    aliases.write_text(f"[smollm2-135m]\nmodel = {json.dumps(tiny())}\n")
    backend = default_backend(
        catalog=Catalog(aliases_file=aliases, cache_dir=tmp_path / "cache"),
        offline=True,
        memory_budget="1GiB",
        timeout=60.0,
    )

    def embed(model: str, texts: list[str], **_: Any) -> Any:
        vectors = np.zeros((len(texts), 384), dtype=np.float32)
        return type("Found", (), {"vectors": vectors})

    monkeypatch.setattr(backend, "embed", embed)
    yield
    assert backend.close()


@pytest.mark.parametrize(("module", "name"), EXAMPLES, ids=[f"{m}:{n}" for m, n in EXAMPLES])
@pytest.mark.usefixtures("shared_backend")
def test_the_example_runs(module: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    documented: Any = importlib.import_module(module)
    for part in filter(None, name.split(".")):
        documented = getattr(documented, part)
    code = example_of(documented)
    # What a random model says is cut off by nothing, so it needs a limit.
    if "max_tokens" not in code:
        code = code.replace('model="smollm2-135m"', 'model="smollm2-135m", max_tokens=200')
    exec(compile(code, f"{module}:{name}", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out
