"""The examples in the docstrings run, with small models in place of real ones."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding
from llama_index.llms.mlx_guarded import LlamaIndexCandidate, MLXGuarded, watch

from mlx_guarded_llm import Backend
from tests._examples import example_of
from tests.conftest import MakeBackend, MakeModel
from tests.llama_index._helpers import Fake, big


@pytest.fixture
def backend(make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The one that the process shares."""
    backend = make_backend()
    name = "mlx_guarded_llm.backend.default_backend.default_backend"
    monkeypatch.setattr(name, lambda: backend)
    return backend


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("documented", [MLXGuarded, LlamaIndexCandidate, MLXGuardedEmbedding])
def test_the_example_of_a_class(
    documented: Any, scripted: MakeModel, embedder: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    code = example_of(documented)
    code = code.replace("smollm2-135m", scripted("Paris.")).replace("all-minilm-l6-v2", embedder())
    exec(compile(code, documented.__name__, "exec"), {})
    if documented is MLXGuarded:
        assert capsys.readouterr().out.startswith("Paris.")


def test_the_example_of_a_watch(capsys: pytest.CaptureFixture[str]) -> None:
    class Engine:
        def query(self, question: str) -> str:
            return str(big(Fake()).complete(question))

    exec(compile(example_of(watch), "watch", "exec"), {"watch": watch, "query_engine": Engine()})
    assert capsys.readouterr().out == ""
