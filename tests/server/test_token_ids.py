"""Token ids in place of text, and the setting that says what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from mlx_guarded_llm.errors import InvalidRequest
from tests.conftest import MakeModel

from ._asking import openai_client
from .conftest import Running, Serve

TEXTS = ["one", "Zürich 😀"]


@pytest.fixture
def start(serve: Serve, embedder: MakeModel) -> Any:
    def begin(meaning: str) -> Running:
        return serve(models={"bert": {"model": embedder(), "token_ids": meaning}})

    return begin


def ask(running: Running, texts: Any) -> tuple[int, Any]:
    reply = running.client.post("/v1/embeddings", json={"model": "bert", "input": texts})
    answer = reply.json()
    if reply.status_code != 200:
        return reply.status_code, answer["error"]
    return reply.status_code, [item["embedding"] for item in answer["data"]]


def test_they_may_be_the_models_own(start: Any) -> None:
    running = start("model")
    own = running.backend.embed("bert", TEXTS).vectors
    ids = [running.backend.tokens("bert", text, raw=True) for text in TEXTS]
    for given in (ids, TEXTS):
        status, found = ask(running, given)
        assert status == 200
        np.testing.assert_allclose(found, own, atol=1e-6)
    _, [single] = ask(running, ids[0])
    np.testing.assert_allclose(single, own[0], atol=1e-6)
    for wrong, said in (
        ([10**6], "embeddings for the tokens"),
        ([-1], "ids of tokens"),
        ([[]], "no tokens"),
        ([5] * 99, "99 tokens"),
    ):
        status, error = ask(running, wrong)
        assert status == 400 and said in error["message"]


@pytest.mark.usefixtures("tiktoken_files")
def test_they_may_be_of_an_encoding(start: Any) -> None:
    import tiktoken

    running = start("cl100k_base")
    own = running.backend.embed("bert", TEXTS).vectors
    ids = [tiktoken.get_encoding("cl100k_base").encode(text) for text in TEXTS]
    for given in (ids, TEXTS):
        status, found = ask(running, given)
        assert status == 200
        np.testing.assert_allclose(found, own, atol=1e-6)
    for wrong in (10**6, 2**40, -1):
        status, error = ask(running, [wrong])
        assert status == 400 and "cl100k_base" in error["message"]


def continued(running: Running, prompt: Any, **options: Any) -> list[str]:
    with openai_client(running) as client:
        answer = client.completions.create(model="m", prompt=prompt, max_tokens=8, **options)
    assert answer.usage is not None
    return [choice.text for choice in answer.choices]


def test_a_completion_of_the_models_own(serve: Serve, tiny: MakeModel) -> None:
    entry = {"model": tiny(), "token_ids": "model", "fallbacks": ["other"], "on_fallback": "mark"}
    running = serve(models={"m": entry, "other": tiny(seed=1)})
    ids = [running.backend.tokens("m", text, raw=True) for text in TEXTS]
    assert continued(running, ids) == continued(running, TEXTS)
    assert continued(running, ids[0]) == continued(running, TEXTS)[:1]
    for wrong, said in (
        ({"prompt": [10**6]}, "embeddings for the tokens"),
        ({"prompt": [-1]}, "ids of tokens"),
        ({"prompt": [[]]}, "no tokens"),
        ({"prompt": [ids[0], []]}, "no tokens"),
        ({"prompt": ids[0], "echo": True}, "token ids"),
        ({"prompt": ids[0] * 2000}, "prompt has 6000"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            continued(running, **wrong)


@pytest.mark.usefixtures("tiktoken_files")
def test_a_completion_of_an_encoding(serve: Serve, tiny: MakeModel) -> None:
    import tiktoken

    running = serve(models={"m": {"model": tiny(), "token_ids": "cl100k_base"}})
    ids = [tiktoken.get_encoding("cl100k_base").encode(text) for text in TEXTS]
    whole = continued(running, ids, echo=True)
    assert whole == continued(running, TEXTS, echo=True)
    assert all(found.startswith(text) for found, text in zip(whole, TEXTS, strict=True))
    with pytest.raises(openai.BadRequestError, match="cl100k_base"):
        continued(running, [10**6])


def test_an_encoding_that_cannot_be_had(
    start: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(url: str) -> bytes:
        raise OSError(url)

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.load.read_file", offline)
    running = start("p50k_base")
    status, error = ask(running, [1])
    assert (status, error["code"]) == (500, "tokenizer_unavailable")
    assert "TIKTOKEN_CACHE_DIR" in error["hint"] and "http" not in error["message"]


def test_an_encoding_that_there_is_not(start: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"models\.bert: token_ids is 'cl200k'") as raised:
        start("cl200k")
    assert "cl100k_base" in raised.value.hint


def test_without_tiktoken(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_guarded_llm.server.token_ids.find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match="not installed") as raised:
        start("cl100k_base")
    assert "pip install tiktoken" in raised.value.hint
