"""`/v1/completions` and `/v1/embeddings`, through OpenAI's own client."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import openai
import pytest

from tests.conftest import MakeModel

from ._asking import openai_client
from .conftest import ANSWER, Running, Serve

USUAL = 16


def test_a_text_goes_on(serve: Serve, scripted: MakeModel) -> None:
    with openai_client(serve(models={"paris": scripted(ANSWER)})) as client:
        answer = client.completions.create(model="paris", prompt="Where?")
        assert answer.usage is not None and answer.usage.completion_tokens <= USUAL
        assert ANSWER.startswith(answer.choices[0].text)
        whole = client.completions.create(
            model="paris", prompt=["Where?", "Which?"], max_tokens=99, echo=True
        )
        assert [choice.text for choice in whole.choices] == ["Where?" + ANSWER, "Which?" + ANSWER]
        assert whole.choices[0].finish_reason == "stop"
        chunks = list(
            client.completions.create(
                model="paris", prompt=["A", "B"], max_tokens=99, echo=True, stream=True,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
        for place, letter in enumerate("AB"):
            parts = [c.choices[0].text for c in chunks if c.choices and c.choices[0].index == place]
            assert "".join(parts) == letter + ANSWER
        assert chunks[-1].usage is not None
        assert whole.usage is not None
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_its_log_probabilities(serve: Serve, scripted: MakeModel) -> None:
    with openai_client(serve(models={"paris": scripted(ANSWER)})) as client:
        answer = client.completions.create(model="paris", prompt="A", logprobs=2, max_tokens=4)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None and logprobs.tokens and logprobs.text_offset
        assert len(logprobs.tokens) == 4 and logprobs.text_offset[0] == 0
        assert logprobs.text_offset[1] == len(logprobs.tokens[0])
        assert len((logprobs.top_logprobs or [{}])[0]) == 2


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 99}, "logprobs"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2], [3]]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 5, "n": 4}, "choices"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_it_cannot_do(paris: Running, wrong: dict[str, Any], param: str) -> None:
    reply = paris.client.post("/v1/completions", json={"model": "paris", "prompt": "a"} | wrong)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


@pytest.fixture
def embedding(serve: Serve, embedder: MakeModel) -> Running:
    return serve(models={"bert": embedder()})


def test_vectors(embedding: Running) -> None:
    with openai_client(embedding) as client:
        texts = ["one", "two"]
        as_base64 = client.embeddings.create(model="bert", input=texts)  # what the client asks for
        as_floats = client.embeddings.create(model="bert", input=texts, encoding_format="float")
        for place, (one, other) in enumerate(zip(as_base64.data, as_floats.data, strict=True)):
            assert one.index == place
            assert one.embedding == other.embedding
        assert as_floats.usage.prompt_tokens == as_floats.usage.total_tokens > 0
        own = embedding.backend.embed("bert", texts).vectors
        np.testing.assert_allclose(as_floats.data[1].embedding, own[1], atol=1e-6)
        single = client.embeddings.create(model="bert", input="one", dimensions=own.shape[1])
        assert single.data[0].embedding == as_base64.data[0].embedding


def test_base64_is_little_endian_float32(embedding: Running) -> None:
    body = {"model": "bert", "input": "one", "encoding_format": "base64"}
    reply = embedding.client.post("/v1/embeddings", json=body)
    vector = np.frombuffer(base64.b64decode(reply.json()["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-5)
    assert reply.headers["x-guard-served-model"] == reply.json()["guard"]["served_model"] == "bert"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dimensions": 5}, "dimensions"),
        ({"input": [1, 2]}, "OpenAIEmbeddings"),
        ({"input": [[1, 2], [3]]}, "token ids"),
        ({"input": ["a"] * 2049}, "2,049"),
        ({"input": "a" * 99}, "101 tokens"),
    ],
)
def test_what_cannot_be_embedded(embedding: Running, wrong: dict[str, Any], said: str) -> None:
    with openai_client(embedding) as client, pytest.raises(openai.BadRequestError, match=said):
        client.embeddings.create(**({"model": "bert", "input": "a"} | wrong))


def test_a_model_of_the_other_kind(embedding: Running) -> None:
    with openai_client(embedding) as client, pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="bert", messages=[{"role": "user", "content": "Hi"}])
