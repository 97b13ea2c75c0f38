"""The examples on the small real models they use by default."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from langchain_mlx_guarded import ChatMLXGuarded, MLXGuardedEmbeddings
from mlx_guarded_llm import Backend, GuardedLLM
from mlx_guarded_llm.record import overlaps

from ._examples import example

# The larger one, in bf16, reads long prompts faster on a CPU.
SMALL, LARGE, VECTORS = "smollm2-135m", "smollm2-135m-bf16", "all-minilm-l6-v2"

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """One for all of them, with the user's own cache of models."""
    with Backend(load_wait=0.5) as backend:
        yield backend
        assert overlaps(backend.timeline()) == []


def test_the_agent_looks_it_up(backend: Backend) -> None:
    chat = ChatMLXGuarded(model=LARGE, backend=backend, max_tokens=48)
    state = example("agent_loop").ask(chat, "How many people live in Paris?")
    _, call, result, answer = state["messages"]
    assert [c["args"] for c in call.tool_calls] == [{"city": "Paris"}]
    assert "2,100,000" in result.content and answer.content
    assert {guard["served_model"] for guard in state["guard"]} == {LARGE}


def test_retrieval_finds_the_price(backend: Backend) -> None:
    rag = example("rag_langchain")
    chat = ChatMLXGuarded(model=LARGE, backend=backend, max_tokens=16)
    embeddings = MLXGuardedEmbeddings(model=VECTORS, backend=backend)
    message = rag.make_chain(chat, embeddings, rag.FACTS).invoke("What does a ticket cost?")
    assert "twelve" in message.text.lower()


@pytest.mark.usefixtures("event_loop_of_ours")
def test_retrieval_finds_the_price_in_llama_index(backend: Backend) -> None:
    from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding
    from llama_index.llms.mlx_guarded import MLXGuarded

    rag = example("rag_llama_index")
    llm = MLXGuarded(model=LARGE, backend=backend, max_tokens=16)
    embedding = MLXGuardedEmbedding(model_name=VECTORS, backend=backend)
    response, seen = rag.ask(llm, embedding, rag.FACTS, "What does a ticket cost?")
    assert "twelve euros" in response.source_nodes[0].text
    assert "twelve" in str(response).lower()
    assert [guard.served_model for guard in seen.guards] == [LARGE]


async def test_the_planner_is_loaded_while_the_worker_writes(backend: Backend) -> None:
    await backend.aunload(LARGE)
    notes, plan, article = await example("two_models").write(
        GuardedLLM(backend, LARGE, max_tokens=8), GuardedLLM(backend, SMALL, max_tokens=16)
    )
    assert plan.guard.deferred > 0 and plan.guard.loading > 0
    assert notes.text and plan.text and article.text
    assert "deferred behind" in backend.explain(plan.guard.request_id)


def test_a_chain_of_thought_survives_failures(backend: Backend) -> None:
    results = example("extended_thinking").fails_twice(
        backend, SMALL, LARGE, stop=[".", "\n"], max_tokens=12
    )
    assert [result.guard.served_model for result in results] == [SMALL] * 3
    assert not any(result.guard.fallback for result in results)
