"""MLXGuardedEmbedding on a real backend, and a RAG query with all of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding
from llama_index.llms.mlx_guarded import MLXGuarded, watch
from pydantic import ValidationError

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import InvalidRequest, ModelNotFound, ModelUnsupported
from tests.conftest import MakeModel
from tests.engine._backend import events

TEXTS = ["a cat on a mat", "trains run late", "bread and butter", "a dog in the fog"]
ANSWER = "The cat sat on the mat."


@pytest.fixture
def embedding(backend: Backend, embedder: MakeModel) -> MLXGuardedEmbedding:
    return MLXGuardedEmbedding(model_name=embedder(), backend=backend)


def near(one: list[float], other: list[float]) -> bool:
    return bool(np.allclose(one, other, atol=1e-5))


def test_vectors_of_texts(embedding: MLXGuardedEmbedding) -> None:
    vectors = embedding.get_text_embedding_batch(TEXTS)
    assert len(vectors) == len(TEXTS)
    assert all(isinstance(value, float) for value in vectors[0])
    assert all(math.isclose(np.linalg.norm(vector), 1.0, abs_tol=1e-5) for vector in vectors)
    assert near(embedding.get_text_embedding(TEXTS[1]), vectors[1])
    assert near(embedding.get_query_embedding(TEXTS[1]), vectors[1])
    assert not near(vectors[0], vectors[1])


async def test_awaited_vectors_are_the_same(embedding: MLXGuardedEmbedding) -> None:
    vectors = embedding.get_text_embedding_batch(TEXTS)
    awaited = await embedding.aget_text_embedding_batch(TEXTS)
    assert all(near(one, other) for one, other in zip(vectors, awaited, strict=True))
    assert near(await embedding.aget_text_embedding(TEXTS[1]), vectors[1])
    assert near(await embedding.aget_query_embedding(TEXTS[1]), vectors[1])


def test_texts_are_sent_in_batches(backend: Backend, embedder: MakeModel) -> None:
    embedding = MLXGuardedEmbedding(model_name=embedder(), backend=backend, embed_batch_size=3)
    vectors = embedding.get_text_embedding_batch(TEXTS)
    assert len(vectors) == 4
    assert len(events(backend, "request.finished")) == 2


class Noting:
    """A backend that only notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str], dict[str, Any]]] = []

    def embed(self, model: str, texts: list[str], **options: Any) -> Any:
        self.asked.append((model, list(texts), options))

        class Found:
            vectors = np.ones((len(texts), 2), dtype=np.float32)

        return Found()

    async def aembed(self, model: str, texts: list[str], **options: Any) -> Any:
        return self.embed(model, texts, **options)


async def test_instructions_come_before_texts_and_queries() -> None:
    backend = Noting()
    embedding = MLXGuardedEmbedding(
        model_name="m",
        backend=backend,
        query_instruction="query: ",
        text_instruction="passage: ",
        truncate=True,
        timeout=9.0,
    )
    embedding.get_query_embedding("a")
    embedding.get_text_embedding("b")
    await embedding.aget_query_embedding("a")
    await embedding.aget_text_embedding("b")
    shown = [texts for _, texts, _ in backend.asked]
    assert shown == [["query: a"], ["passage: b"]] * 2
    assert all(options == {"truncate": True, "timeout": 9.0} for _, _, options in backend.asked)


def test_a_text_that_is_too_long_is_an_error_unless_it_may_be_cut(
    embedding: MLXGuardedEmbedding,
) -> None:
    with pytest.raises(InvalidRequest):
        embedding.get_text_embedding("long " * 100)
    cutting = embedding.model_copy(update={"truncate": True})
    assert cutting.get_text_embedding("long " * 100)


def test_errors_come_through(backend: Backend, tiny: MakeModel) -> None:
    with pytest.raises(ModelNotFound):
        MLXGuardedEmbedding(model_name="nobody", backend=backend).get_text_embedding("a")
    with pytest.raises(ModelUnsupported):
        MLXGuardedEmbedding(model_name=tiny(), backend=backend).get_text_embedding("a")


def test_an_unknown_setting_is_an_error() -> None:
    wrong: Any = {"modl": "x"}
    with pytest.raises(ValidationError, match="modl"):
        MLXGuardedEmbedding(model_name="m", **wrong)


def test_callbacks_are_told_of_each_batch(backend: Backend, embedder: MakeModel) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    embedding = MLXGuardedEmbedding(
        model_name=embedder(),
        backend=backend,
        embed_batch_size=2,
        callback_manager=CallbackManager([handler]),
    )
    embedding.get_text_embedding_batch(TEXTS)
    assert len(handler.get_event_pairs(CBEventType.EMBEDDING)) == 2


def test_it_is_a_step_of_an_ingestion_pipeline(embedding: MLXGuardedEmbedding) -> None:
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(), embedding])
    nodes = pipeline.run(documents=[Document(text=text) for text in TEXTS])
    assert all(node.embedding and len(node.embedding) == 32 for node in nodes)


# ---- RAG -----------------------------------------------------------------------------


@pytest.fixture
def llm(backend: Backend, scripted: MakeModel) -> MLXGuarded:
    return MLXGuarded(model=scripted(ANSWER), backend=backend)


@pytest.fixture
def index(embedding: MLXGuardedEmbedding) -> VectorStoreIndex:
    return VectorStoreIndex.from_documents(
        [Document(text=text) for text in TEXTS], embed_model=embedding
    )


def test_a_query_finds_its_text_and_is_answered(
    backend: Backend, index: VectorStoreIndex, llm: MLXGuarded
) -> None:
    engine = index.as_query_engine(llm=llm, similarity_top_k=1)
    with watch() as seen:
        response = engine.query(TEXTS[0])
    assert str(response) == ANSWER
    assert response.source_nodes[0].text == TEXTS[0]
    assert len(seen.guards) == 1 and seen.as_asked
    assert {model.name for model in backend.models()} == {llm.model, index._embed_model.model_name}


async def test_queries_at_once_share_the_engine(index: VectorStoreIndex, llm: MLXGuarded) -> None:
    engine = index.as_query_engine(llm=llm, similarity_top_k=1)
    responses = await asyncio.gather(*(engine.aquery(text) for text in TEXTS))
    assert [response.source_nodes[0].text for response in responses] == TEXTS
    assert {str(response) for response in responses} == {ANSWER}


def test_a_streamed_query(index: VectorStoreIndex, llm: MLXGuarded) -> None:
    response: Any = index.as_query_engine(llm=llm, streaming=True).query(TEXTS[0])
    assert "".join(response.response_gen) == ANSWER


async def test_a_streamed_query_awaited(index: VectorStoreIndex, llm: MLXGuarded) -> None:
    response: Any = await index.as_query_engine(llm=llm, streaming=True).aquery(TEXTS[0])
    pieces = [piece async for piece in response.async_response_gen()]
    assert "".join(pieces) == ANSWER


@pytest.mark.parametrize("mode", ["context", "condense_plus_context", "condense_question"])
def test_a_chat_over_documents(index: VectorStoreIndex, llm: MLXGuarded, mode: Any) -> None:
    # A chat engine's own memory leaves a database open.
    memory = ChatMemoryBuffer.from_defaults(token_limit=3000)
    engine = index.as_chat_engine(chat_mode=mode, llm=llm, memory=memory)
    assert str(engine.chat(TEXTS[0])) == ANSWER
    assert str(engine.chat("And then?")) == ANSWER


@pytest.fixture
def settings(embedding: MLXGuardedEmbedding, llm: MLXGuarded) -> Iterator[None]:
    before = Settings._llm, Settings._embed_model
    Settings.llm, Settings.embed_model = llm, embedding
    yield
    Settings._llm, Settings._embed_model = before


@pytest.mark.usefixtures("settings")
def test_settings_take_both() -> None:
    index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS])
    assert str(index.as_query_engine().query("What sat on the mat?")) == ANSWER
