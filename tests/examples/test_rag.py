"""Both frameworks find the right fact, and both models run under one guard."""

from __future__ import annotations

import pytest
from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding
from llama_index.llms.mlx_guarded import MLXGuarded

from langchain_mlx_guarded import ChatMLXGuarded, MLXGuardedEmbeddings
from mlx_guarded_llm import Backend
from tests.conftest import MakeModel

from ._examples import example

SAID = "Twelve euros."
# A tiny embedder has a token for each letter, so a text is nearest to itself.
FACTS = ["The museum opens at nine.", "A ticket costs twelve euros.", "No dogs."]
QUESTION = FACTS[1]


def both_resident(backend: Backend, *models: str) -> bool:
    return {info.name for info in backend.models()} == set(models)


def test_langchain(backend: Backend, scripted: MakeModel, embedder: MakeModel) -> None:
    model, vectors = scripted(SAID), embedder()
    chat = ChatMLXGuarded(model=model, backend=backend)
    embeddings = MLXGuardedEmbeddings(model=vectors, backend=backend)
    rag = example("rag_langchain")
    chain = rag.make_chain(chat, embeddings, FACTS)
    message = chain.invoke(QUESTION)
    assert message.content == SAID
    assert message.response_metadata["guard"]["served_model"] == model
    prompt = chain.steps[1].invoke(chain.steps[0].invoke(QUESTION)).to_string()
    assert QUESTION in prompt.split("Question:")[0]
    assert both_resident(backend, model, vectors)


@pytest.mark.usefixtures("event_loop_of_ours")
def test_llama_index(backend: Backend, scripted: MakeModel, embedder: MakeModel) -> None:
    model, vectors = scripted(SAID), embedder()
    llm = MLXGuarded(model=model, backend=backend)
    embedding = MLXGuardedEmbedding(model_name=vectors, backend=backend)
    response, seen = example("rag_llama_index").ask(llm, embedding, FACTS, QUESTION)
    assert str(response) == SAID
    assert response.source_nodes[0].text == QUESTION
    assert [guard.served_model for guard in seen.guards] == [model] and seen.as_asked
    assert both_resident(backend, model, vectors)
