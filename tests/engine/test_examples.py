"""The examples in the docstrings run. Small models stand for the ones they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend, Candidate, GuardedLLM, RetryPolicy, taint
from tests._examples import example_of
from tests.conftest import MakeModel


@pytest.mark.parametrize("documented", [Backend, GuardedLLM, RetryPolicy, Candidate, taint])
def test_an_example_runs(
    documented: Any,
    scripted: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    aliases = tmp_path / "models.toml"
    named = {"smollm2-135m": "It is Paris.", "smollm2-135m-bf16": "It is Lyon."}
    tables = (f"[{name}]\nmodel = {json.dumps(scripted(text))}" for name, text in named.items())
    aliases.write_text("\n".join(tables))
    monkeypatch.setenv("MLX_GUARDED_MODELS_FILE", str(aliases))
    monkeypatch.setenv("MLX_GUARDED_CACHE_DIR", str(tmp_path / "cache"))
    exec(compile(example_of(documented), documented.__name__, "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    said = {Backend: "It is Paris. 0.0", GuardedLLM: "It is Paris. True 1", Candidate: "Hello?"}
    assert out.startswith(said.get(documented, "0 ('fallback'," if documented is taint else ""))
