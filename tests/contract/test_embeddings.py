"""Vectors through both adapters are the backend's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding

from langchain_mlx_guarded import MLXGuardedEmbeddings
from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import InvalidRequest, ModelNotFound
from mlx_guarded_llm.record import overlaps
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events

TEXTS = ["a cat on a mat", "stocks fell", "", "déjà vu"]

WAYS: dict[str, tuple[Any, Any]] = {
    "langchain": (
        lambda model, texts: model.embed_documents(texts),
        lambda model, text: model.embed_query(text),
    ),
    "llama_index": (
        lambda model, texts: model.get_text_embedding_batch(texts),
        lambda model, text: model.get_query_embedding(text),
    ),
}
AWAITED: dict[str, tuple[Any, Any]] = {
    "langchain": (
        lambda model, texts: model.aembed_documents(texts),
        lambda model, text: model.aembed_query(text),
    ),
    "llama_index": (
        lambda model, texts: model.aget_text_embedding_batch(texts),
        lambda model, text: model.aget_query_embedding(text),
    ),
}
each_library = pytest.mark.parametrize("library", ["langchain", "llama_index"])


def make(library: str, backend: Any, model: str, **settings: Any) -> Any:
    if library == "langchain":
        return MLXGuardedEmbeddings(model=model, backend=backend, **settings)
    return MLXGuardedEmbedding(model_name=model, backend=backend, **settings)


@each_library
async def test_vectors_are_those_of_the_backend(
    library: str, backend: Backend, embedder: MakeModel
) -> None:
    model = embedder()
    expected = backend.embed(model, TEXTS).vectors
    embedding = make(library, backend, model)
    many, one = WAYS[library]
    amany, aone = AWAITED[library]
    for vectors in (many(embedding, TEXTS), await amany(embedding, TEXTS)):
        np.testing.assert_allclose(np.array(vectors), expected, atol=1e-5)
    for vector in (one(embedding, TEXTS[0]), await aone(embedding, TEXTS[0])):
        np.testing.assert_allclose(np.array(vector), expected[0], atol=1e-5)
    assert all(isinstance(number, float) for number in vector)


@each_library
def test_no_texts_are_no_vectors_and_load_nothing(
    library: str, backend: Backend, embedder: MakeModel
) -> None:
    assert WAYS[library][0](make(library, backend, embedder()), []) == []
    assert events(backend, "load.") == []


@each_library
def test_making_one_loads_nothing(library: str, backend: Backend, embedder: MakeModel) -> None:
    embedding = make(library, backend, embedder())
    repr(embedding)
    embedding.model_dump()
    assert backend.models() == []


@each_library
def test_an_unknown_model_is_an_error(library: str, backend: Backend) -> None:
    with pytest.raises(ModelNotFound):
        WAYS[library][1](make(library, backend, "/no-such-model"), "Hi")


@each_library
def test_a_text_that_is_too_long_is_an_error_and_not_cut(
    library: str, backend: Backend, embedder: MakeModel
) -> None:
    model = embedder(context_window=16)
    with pytest.raises(InvalidRequest) as caught:
        WAYS[library][1](make(library, backend, model), "x" * 99)
    assert "truncate=True" in caught.value.hint
    cut = make(library, backend, model, truncate=True)
    assert WAYS[library][1](cut, "x" * 99) == WAYS[library][1](cut, "x" * 150)


@each_library
async def test_more_texts_than_a_request_takes_are_several_requests(
    library: str, monkeypatch: pytest.MonkeyPatch, backend: Backend, embedder: MakeModel
) -> None:
    model = embedder()
    texts = [f"text {i}" for i in range(5)]
    expected = backend.embed(model, texts).vectors
    monkeypatch.setattr("mlx_guarded_llm.embed_request.MAX_TEXTS", 2)
    embedding = make(library, backend, model, timeout=60.0)
    for vectors in (
        WAYS[library][0](embedding, texts),
        await AWAITED[library][0](embedding, texts),
    ):
        np.testing.assert_allclose(np.array(vectors), expected, atol=1e-5)


@each_library
def test_copies_share_the_backend_and_pickles_leave_it_behind(
    library: str, backend: Backend
) -> None:
    embedding = make(library, backend, "m")
    assert copy.deepcopy(embedding).backend is backend
    assert embedding.model_copy(deep=True).backend is backend
    assert pickle.loads(pickle.dumps(embedding)).backend is None
    assert embedding.backend is backend


def test_embeddings_and_chat_models_share_one_guard(
    make_backend: MakeBackend, embedder: MakeModel, scripted: MakeModel
) -> None:
    backend = make_backend(load_wait=0.01, fairness_window=0.01)
    said = "and so on, " * 40
    stream = backend.stream(scripted(said), "Talk.", max_tokens=900)
    text = next(stream).text
    for library in WAYS:
        assert WAYS[library][1](make(library, backend, embedder(seed=len(library))), "Hi")
    text += "".join(chunk.text for chunk in stream)
    assert text == said
    assert overlaps(backend.timeline()) == []
