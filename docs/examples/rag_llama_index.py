"""Retrieval and an answer in LlamaIndex, with both models under one guard.

    python docs/examples/rag_llama_index.py [MODEL] [EMBEDDING_MODEL]

It needs `pip install llama-index-llms-mlx-guarded llama-index-embeddings-mlx-guarded`.
"""

# ruff: noqa: T201 - a script that prints
from __future__ import annotations

import sys
from collections.abc import Sequence

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.response.schema import Response
from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding
from llama_index.llms.mlx_guarded import MLXGuarded, Watch, watch

from mlx_guarded_llm import Backend

FACTS = [
    "The museum opens at nine in the morning and closes at five.",
    "A ticket for the museum costs twelve euros; children pay nothing.",
    "The cafe in the garden serves soup and bread until three.",
    "Dogs may not enter the garden.",
]


def ask(
    llm: MLXGuarded, embedding: MLXGuardedEmbedding, facts: Sequence[str], question: str
) -> tuple[Response, Watch]:
    """Answer a question from the facts that fit it best.

    Returns:
        The response, and the answers behind it: a query engine passes on only text, so a
        `watch` collects their provenance.
    """
    index = VectorStoreIndex.from_documents(
        [Document(text=fact) for fact in facts], embed_model=embedding
    )
    engine = index.as_query_engine(llm=llm, similarity_top_k=2)
    with watch() as seen:
        response = engine.query(question)
    assert isinstance(response, Response)
    return response, seen


def main(model: str = "smollm2-135m", embedding_model: str = "all-minilm-l6-v2") -> None:
    """Ask about the museum."""
    with Backend() as backend:
        llm = MLXGuarded(model=model, backend=backend, max_tokens=48)
        embedding = MLXGuardedEmbedding(model_name=embedding_model, backend=backend)
        response, seen = ask(llm, embedding, FACTS, "What does a ticket cost?")
        print(response)
        for node in response.source_nodes:
            print(f"{node.score:.2f} {node.text}")
        for guard in seen.guards:
            print(guard.served_model, guard.deferred, guard.loading)
        print([(info.name, info.state) for info in backend.models()])


if __name__ == "__main__":
    main(*sys.argv[1:])
