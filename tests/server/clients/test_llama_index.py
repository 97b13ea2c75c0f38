"""LlamaIndex's `OpenAILike`."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage, ThinkingBlock
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]
from pydantic import BaseModel, Field

from tests.conftest import MakeModel
from tests.llama_index._helpers import old_parts, user

from ..conftest import ANSWER, Running
from .conftest import ServeModule, usual_models


@pytest.fixture(scope="module")
def server(
    serve_module: ServeModule, scripted: MakeModel, tiny: MakeModel, embedder: MakeModel
) -> Running:
    return serve_module(
        models={
            **usual_models(scripted, embedder),
            "thinker": scripted("<think>Well.</think>Paris.", thinking=True),
            "noise": tiny(),
        }
    )


def like(server: Running, model: str, **options: Any) -> OpenAILike:
    return OpenAILike(
        model=model,
        api_base=f"{server.url}/v1",
        api_key="none",
        **({"is_chat_model": True, "context_window": 2048} | options),
    )


# ---- chat and completions ------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
async def test_each_way_to_ask(server: Running, http: httpx.AsyncClient, chat: bool) -> None:
    """Without `is_chat_model` it asks `/v1/completions`, which has no chat template."""
    llm = like(server, "smollm2-135m", is_chat_model=chat, max_tokens=100, async_http_client=http)
    assert llm.complete("Where?").text == ANSWER
    assert llm.chat(user()).message.content == ANSWER
    assert "".join(piece.delta or "" for piece in llm.stream_complete("Where?")) == ANSWER
    assert "".join(piece.delta or "" for piece in llm.stream_chat(user())) == ANSWER
    assert (await llm.acomplete("Where?")).text == ANSWER
    assert (await llm.achat(user())).message.content == ANSWER
    pieces = [piece async for piece in await llm.astream_chat(user())]
    assert pieces[-1].message.content == ANSWER
    pieces = [piece async for piece in await llm.astream_complete("Where?")]
    assert pieces[-1].text == ANSWER


def test_who_answered_is_in_the_raw_response(server: Running) -> None:
    raw = like(server, "smollm2-135m").chat(user()).raw
    assert raw.guard["served_model"] == "smollm2-135m" and raw.guard["degraded"] == []


def test_thinking(server: Running) -> None:
    message = like(server, "thinker").chat(user()).message
    assert message.content == "Paris."
    thoughts = [block.content for block in message.blocks if isinstance(block, ThinkingBlock)]
    assert thoughts == ["Well."]


def test_structured_output(server: Running) -> None:
    class Sum(BaseModel):
        """A sum."""

        value: int = Field(ge=0, le=9)

    # `should_use_structured_outputs=True` would import what openai 3 no longer has.
    llm = like(server, "noise", is_function_calling_model=True, strict=True)
    answer = llm.as_structured_llm(Sum).chat(user())
    assert isinstance(answer.raw, Sum) and 0 <= answer.raw.value <= 9


# ---- tools ---------------------------------------------------------------------------


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@old_parts
@pytest.mark.parametrize("streaming", [False, True])
async def test_an_agent_uses_a_tool_and_answers(
    server: Running, http: httpx.AsyncClient, streaming: bool
) -> None:
    llm = like(
        server,
        "qwen3-4b",
        is_function_calling_model=True,
        context_window=8192,
        async_http_client=http,
    )
    agent = FunctionAgent(tools=[add], llm=llm, streaming=streaming, system_prompt="Add.")
    handler = agent.run("19 + 23?")
    events = [event async for event in handler.stream_events()]
    assert str(await handler) == "It is 42."
    results = [
        event.tool_output.raw_output for event in events if isinstance(event, ToolCallResult)
    ]
    assert results == [42]
    deltas = [event.delta for event in events if isinstance(event, AgentStream)]
    assert "".join(deltas) == ("It is 42." if streaming else "")


# ---- errors --------------------------------------------------------------------------


def test_a_prompt_that_is_too_long(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        like(server, "smollm2-135m").chat([ChatMessage(role="user", content="a" * 3000)])
    assert raised.value.code == "context_length_exceeded"
    body: Any = raised.value.body
    assert body["context_window"] == 2048 and body["hint"] in str(raised.value)
