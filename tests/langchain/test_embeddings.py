"""Embeddings over a backend that counts what it is asked, and over a real small encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from langchain_core import exceptions as theirs
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from langchain_mlx_guarded import MLXGuardedEmbeddings
from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import ModelNotFound, RequestTimeout


@dataclass
class Vectors:
    vectors: Any


class Counter:
    """Stands for a backend: each text's vector is its length and its first letter's code."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[tuple[str, list[str], float | None]] = []

    def embed(
        self, model: str, texts: list[str], *, truncate: bool, timeout: float | None
    ) -> Vectors:
        self.calls.append((model, texts, timeout))
        if self.error is not None:
            raise self.error
        rows = [[len(text), ord(text[0]) if text else 0] for text in texts]
        return Vectors(np.array(rows, dtype=np.float32))

    async def aembed(self, *args: Any, **kwargs: Any) -> Vectors:
        return self.embed(*args, **kwargs)


def make(backend: Any, **options: Any) -> MLXGuardedEmbeddings:
    return MLXGuardedEmbeddings(model="e5", backend=backend, **options)


async def test_vectors_are_plain_lists_in_the_order_of_the_texts() -> None:
    embeddings = make(Counter())
    expected = [[2.0, 97.0], [1.0, 98.0]]
    assert embeddings.embed_documents(["ab", "b"]) == expected
    assert await embeddings.aembed_documents(["ab", "b"]) == expected
    assert embeddings.embed_query("ab") == await embeddings.aembed_query("ab") == expected[0]
    assert type(embeddings.embed_query("ab")[0]) is float


async def test_queries_and_documents_have_their_own_prefixes() -> None:
    backend = Counter()
    embeddings = make(backend, query_prefix="query: ", document_prefix="passage: ", timeout=3.0)
    embeddings.embed_query("a")
    await embeddings.aembed_documents(["b", "c"])
    assert backend.calls == [
        ("e5", ["query: a"], 3.0),
        ("e5", ["passage: b", "passage: c"], 3.0),
    ]


async def test_no_texts_need_no_model() -> None:
    backend = Counter()
    assert make(backend).embed_documents([]) == await make(backend).aembed_documents([]) == []
    assert backend.calls == []


async def test_errors_are_of_both_libraries() -> None:
    embeddings = make(Counter(RequestTimeout("late.")))
    with pytest.raises(theirs.ModelTimeoutError):
        embeddings.embed_query("a")
    with pytest.raises(theirs.ModelTimeoutError):
        await embeddings.aembed_query("a")


@pytest.mark.parametrize("arguments", [{"modle": "x"}, {"backend": "x"}])
def test_wrong_arguments_are_told_at_once(arguments: Any) -> None:
    with pytest.raises(ValidationError):
        MLXGuardedEmbeddings(model="e5", **arguments)


def test_its_backend_is_not_shown() -> None:
    assert "backend" not in repr(make(Counter()))
    assert make(Counter()).model_dump() == {
        "model_name": "e5",
        "revision": None,
        "context_window": None,
        "query_prefix": "",
        "document_prefix": "",
        "truncate": False,
        "timeout": None,
    }


def test_an_unknown_model_is_an_error(backend: Backend) -> None:
    with pytest.raises(theirs.ModelNotFoundError) as caught:
        MLXGuardedEmbeddings(model="no-such-model", backend=backend).embed_query("a")
    assert isinstance(caught.value, ModelNotFound)


def test_a_vector_store_finds_by_them() -> None:
    store = InMemoryVectorStore(make(Counter()))
    store.add_documents([Document("aaaa"), Document("zz")])
    assert store.similarity_search("bbbb", k=1)[0].page_content == "aaaa"
