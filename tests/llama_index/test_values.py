"""An LLM as a value: copied with its backend, dumped and pickled without."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
from llama_index.core.llms import MockLLM
from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding
from llama_index.llms.mlx_guarded import MLXGuarded

from mlx_guarded_llm import Backend, RetryPolicy
from mlx_guarded_llm.results import Result
from tests.llama_index._helpers import Fake, big, user


def accept(result: Result) -> bool:
    return bool(result.text)


def settings() -> dict[str, Any]:
    return {
        "model": "big",
        "temperature": 0.5,
        "stop": ["END"],
        "retry": RetryPolicy(attempts=5),
        "fallbacks": ["small"],
        "on_fallback": "mark",
    }


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(copy.copy, id="copy"),
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda llm: llm.model_copy(), id="model_copy"),
        pytest.param(lambda llm: llm.model_copy(deep=True), id="deep model_copy"),
    ],
)
def test_copies_share_the_backend(copied: Any, backend: Backend) -> None:
    llm = MLXGuarded(**settings(), backend=backend)
    other = copied(llm)
    assert other.backend is backend
    assert other.to_dict() == llm.to_dict()
    embedding = MLXGuardedEmbedding(model_name="m", backend=backend)
    assert copied(embedding).backend is backend


def test_a_deep_copy_is_apart() -> None:
    llm = big(Fake(), additional_kwargs={"top_k": 1})
    other = copy.deepcopy(llm)
    other.additional_kwargs["top_k"] = 3
    assert llm.additional_kwargs == {"top_k": 1}


def test_pickling_leaves_the_backend_behind(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    llm = MLXGuarded(**settings(), accept=accept, backend=backend)
    other = pickle.loads(pickle.dumps(llm))
    assert other.backend is None and llm.backend is backend
    assert other.to_dict() == llm.to_dict()
    assert other.accept is accept
    embedding = MLXGuardedEmbedding(model_name="m", query_instruction="q: ", backend=backend)
    restored = pickle.loads(pickle.dumps(embedding))
    assert restored.backend is None and restored.query_instruction == "q: "
    assert caplog.records == [], "LlamaIndex removed nothing by itself"


def test_a_check_that_cannot_be_pickled_is_not_lost_in_silence() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(big(None, accept=lambda result: True))


def test_a_dump_can_be_restored() -> None:
    llm = MLXGuarded(**settings())
    plain = llm.to_dict()
    assert "backend" not in plain and "accept" not in plain
    other = MLXGuarded.from_dict(json.loads(llm.to_json()))
    assert other.to_dict() == plain
    assert other.retry == RetryPolicy(attempts=5)


def test_a_dump_names_other_llms_and_does_not_restore_them() -> None:
    plain = big(Fake(), fallbacks=["small", MockLLM()]).to_dict()
    assert plain["fallbacks"] == ["small", {"model_name": "MockLLM"}]
    with pytest.raises(ValueError, match="pass them again"):
        MLXGuarded.from_dict(plain)
    restored = MLXGuarded.from_dict(plain, fallbacks=["small"])
    assert restored.fallbacks == ["small"]


def test_the_backend_is_not_shown() -> None:
    assert "backend" not in repr(big(Fake()))


def test_it_has_a_json_schema() -> None:
    assert "on_fallback" in MLXGuarded.model_json_schema()["properties"]
    assert "backend" in MLXGuardedEmbedding.model_json_schema()["properties"]


def test_a_setting_may_be_changed_later() -> None:
    backend = Fake()
    llm = big(backend)
    llm.temperature = 0.7
    llm.chat(user())
    assert backend.calls[0][1]["temperature"] == 0.7


def test_importing_and_making_one_imports_no_mlx() -> None:
    code = (
        "import sys\n"
        "from llama_index.llms.mlx_guarded import MLXGuarded\n"
        "from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding\n"
        "MLXGuarded(model='big'), MLXGuardedEmbedding(model_name='m')\n"
        "assert not {'mlx', 'mlx_lm', 'transformers', 'llguidance'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
