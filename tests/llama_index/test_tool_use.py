"""Tool calls on a real backend, and the agents of LlamaIndex that make them."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.agent.workflow import (
    AgentStream,
    AgentWorkflow,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.mlx_guarded import MLXGuarded, NoToolCall, watch

from mlx_guarded_llm import Backend, Provenance, Result, RetryPolicy, ToolCall, Usage, taint
from mlx_guarded_llm.errors import InvalidRequest
from tests.conftest import MakeModel
from tests.llama_index._helpers import Fake, big, old_parts, user

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 19, "b": 23}}\n</tool_call>'
MARKERS = {"tools": True, "thinking": True}


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()


ADD = FunctionTool.from_defaults(add)
SHOUT = FunctionTool.from_defaults(shout)


@pytest.fixture
def caller(backend: Backend, scripted: MakeModel) -> MLXGuarded:
    """A model that answers everything with the same call."""
    model = scripted(f"<think>Hm.</think>I add.{CALL}", **MARKERS)
    return MLXGuarded(model=model, backend=backend)


@pytest.fixture
def noise(backend: Backend, tiny: MakeModel) -> MLXGuarded:
    """A model that knows nothing of tools."""
    return MLXGuarded(model=tiny(), backend=backend)


# ---- calls ---------------------------------------------------------------------------


def test_a_call(caller: MLXGuarded) -> None:
    response = caller.chat_with_tools([ADD], user_msg="19 + 23?")
    kinds = [type(block) for block in response.message.blocks]
    assert kinds == [ThinkingBlock, TextBlock, ToolCallBlock]
    assert isinstance(response.raw, dict) and response.raw["finish_reason"] == "tool_calls"
    (call,) = caller.get_tool_calls_from_response(response)
    assert (call.tool_name, call.tool_kwargs) == ("add", {"a": 19, "b": 23})
    assert call.tool_id


async def test_an_awaited_call(caller: MLXGuarded) -> None:
    response = await caller.achat_with_tools([ADD], user_msg="19 + 23?")
    assert len(caller.get_tool_calls_from_response(response)) == 1


def test_a_streamed_call(caller: MLXGuarded) -> None:
    seen = list(caller.stream_chat_with_tools([ADD], user_msg="19 + 23?"))
    (call,) = caller.get_tool_calls_from_response(seen[-1])
    assert call.tool_kwargs == {"a": 19, "b": 23}
    assert seen[-1].message.content == "I add."


async def test_an_awaited_streamed_call(caller: MLXGuarded) -> None:
    stream = await caller.astream_chat_with_tools([ADD], user_msg="19 + 23?")
    seen = [response async for response in stream]
    assert len(caller.get_tool_calls_from_response(seen[-1])) == 1


def test_a_conversation_with_a_tool_goes_on(caller: MLXGuarded) -> None:
    first = caller.chat_with_tools([ADD], user_msg="19 + 23?").message
    (call,) = (block for block in first.blocks if isinstance(block, ToolCallBlock))
    history = [
        *user("19 + 23?"),
        first,
        ChatMessage(
            role="tool", content="42", additional_kwargs={"tool_call_id": call.tool_call_id}
        ),
    ]
    before = [message.model_dump_json() for message in history]
    assert caller.chat_with_tools([ADD], chat_history=history).message.blocks
    assert [message.model_dump_json() for message in history] == before


def test_a_required_call_is_made_by_a_model_that_knows_no_tools(noise: MLXGuarded) -> None:
    response = noise.chat_with_tools([ADD, SHOUT], user_msg="Go.", tool_required=True, seed=1)
    (call,) = noise.get_tool_calls_from_response(response)
    assert call.tool_name in ("add", "shout")
    tool = ADD if call.tool_name == "add" else SHOUT
    assert tool(**call.tool_kwargs).is_error is False


def test_a_tool_may_be_chosen_by_its_name(noise: MLXGuarded) -> None:
    response = noise.chat_with_tools([ADD, SHOUT], user_msg="Go.", tool_choice="shout")
    (call,) = noise.get_tool_calls_from_response(response)
    assert call.tool_name == "shout"


def test_a_tool_that_is_not_offered_cannot_be_chosen(noise: MLXGuarded) -> None:
    with pytest.raises(InvalidRequest, match="names 'fly'"):
        noise.chat_with_tools([ADD], user_msg="Go.", tool_choice="fly")


def test_no_tool_may_be_called(caller: MLXGuarded) -> None:
    response = caller.chat_with_tools([ADD], user_msg="Go.", tool_choice="none")
    assert caller.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(NoToolCall):
        caller.get_tool_calls_from_response(response)


def test_without_tools_it_is_a_chat(noise: MLXGuarded) -> None:
    response = noise.chat_with_tools([], user_msg="Go.", max_tokens=4)
    assert response.message.content


def test_predict_and_call(caller: MLXGuarded) -> None:
    response = caller.predict_and_call([ADD], user_msg="19 + 23?")
    assert str(response) == "42"
    assert response.sources[0].raw_output == 42


async def test_apredict_and_call(caller: MLXGuarded) -> None:
    assert str(await caller.apredict_and_call([ADD], user_msg="19 + 23?")) == "42"


def test_what_is_asked_of_the_backend() -> None:
    backend = Fake()  # it makes no call, also where it had to
    llm = big(backend, retry=RetryPolicy(attempts=1), on_degraded="mark")
    llm.chat_with_tools([ADD], user_msg="Go.")
    llm.chat_with_tools([ADD], user_msg="Go.", tool_required=True, allow_parallel_tool_calls=True)
    llm.chat(user(), tools=[ADD], tool_choice="add")
    shown = [
        (arguments.get("tool_choice"), arguments.get("parallel_tool_calls"))
        for _, arguments in backend.calls
    ]
    named = {"type": "function", "function": {"name": "add"}}
    assert shown == [("auto", False), ("required", True), (named, None)]
    assert all(arguments["tools"][0]["function"]["name"] == "add" for _, arguments in backend.calls)


# ---- agents --------------------------------------------------------------------------


class Steps(Fake):
    """Each answer follows from the one before it: calls, then text."""

    def __init__(self, *steps: str | list[ToolCall]) -> None:
        super().__init__()
        self.steps = list(steps)
        self.prompts: list[Any] = []

    def generate(self, model: str, prompt: Any, **arguments: Any) -> Result:
        self.prompts.append(prompt)
        said = super().generate(model, prompt, **arguments)
        step = self.steps.pop(0)
        calls = () if isinstance(step, str) else tuple(step)
        return Result(
            text=step if isinstance(step, str) else "",
            reasoning="",
            tool_calls=calls,
            invalid_tool_calls=(),
            logprobs=(),
            finish_reason="tool_calls" if calls else "stop",
            usage=Usage(5, 5),
            guard=said.guard,
        )

    async def agenerate(self, model: str, prompt: Any, **arguments: Any) -> Result:
        return self.generate(model, prompt, **arguments)


SUM = ToolCall("c1", "add", {"a": 19, "b": 23})


@old_parts
async def test_a_function_agent_uses_a_tool_and_answers() -> None:
    backend = Steps([SUM], "It is 42.")
    agent = FunctionAgent(tools=[ADD], llm=big(backend), streaming=False, system_prompt="Add.")
    output: Any = await agent.run("19 + 23?")
    assert str(output) == "It is 42."
    assert [result.tool_output.raw_output for result in output.tool_calls] == [42]
    roles = [message["role"] for message in backend.prompts[1]]
    assert roles == ["system", "user", "assistant", "tool"]
    assert backend.prompts[1][-1]["tool_call_id"] == "c1"
    assert output.raw["guard"]["served_model"] == "big"
    assert not taint([output])[0]


@old_parts
async def test_an_agent_calls_tools_in_parallel() -> None:
    calls = [SUM, ToolCall("c2", "shout", {"text": "hi"})]
    backend = Steps(calls, "Done.")
    agent = FunctionAgent(tools=[ADD, SHOUT], llm=big(backend), streaming=False)
    output: Any = await agent.run("Go.")
    assert {str(result.tool_output) for result in output.tool_calls} == {"42", "HI"}


@old_parts
async def test_an_agent_streams_on_a_real_backend(caller: MLXGuarded) -> None:
    # The model makes its call for ever; the agent stops it after its iterations.
    agent = FunctionAgent(tools=[ADD], llm=caller, early_stopping_method="generate")
    handler = agent.run("19 + 23?", max_iterations=2)
    events = [event async for event in handler.stream_events()]
    await handler
    streamed = [event for event in events if isinstance(event, AgentStream)]
    assert "".join(event.thinking_delta or "" for event in streamed).startswith("Hm.")
    assert any(event.delta for event in streamed)
    guards = [Provenance.from_dict(event.raw["guard"]) for event in streamed if event.raw]
    assert guards and all(guard.as_asked for guard in guards)
    results = [event for event in events if isinstance(event, ToolCallResult)]
    assert results and all(result.tool_output.raw_output == 42 for result in results)


@old_parts
async def test_a_workflow_old_parts(caller: MLXGuarded) -> None:
    workflow = AgentWorkflow.from_tools_or_functions([add], llm=caller)
    assert isinstance(workflow.agents["Agent"], FunctionAgent)
    with watch() as seen:
        handler = workflow.run("19 + 23?", max_iterations=2, early_stopping_method="generate")
        results = [
            event async for event in handler.stream_events() if isinstance(event, ToolCallResult)
        ]
        await handler
    assert results and results[0].tool_output.raw_output == 42
    assert seen.guards and seen.as_asked


@old_parts
async def test_a_react_agent(backend: Backend, scripted: MakeModel) -> None:
    text = "Thought: I can answer without using any more tools.\nAnswer: It is 42."
    llm = MLXGuarded(
        model=scripted(text, context_window=8192),
        backend=backend,
        is_function_calling_model=False,
    )
    workflow = AgentWorkflow.from_tools_or_functions([add], llm=llm)
    assert isinstance(workflow.agents["Agent"], ReActAgent)
    assert str(await workflow.run("19 + 23?")) == "It is 42."


@old_parts
async def test_a_react_agent_uses_a_tool() -> None:
    call = 'Thought: I add.\nAction: add\nAction Input: {"a": 19, "b": 23}'
    end = "Thought: I can answer without using any more tools.\nAnswer: It is 42."
    agent = ReActAgent(tools=[ADD], llm=big(Steps(call, end)), streaming=False)
    output: Any = await agent.run("19 + 23?")
    assert str(output) == "It is 42."
    assert [result.tool_output.raw_output for result in output.tool_calls] == [42]


@old_parts
async def test_an_agent_that_gives_objects() -> None:
    from pydantic import BaseModel, Field

    class Sum(BaseModel):
        value: int = Field(ge=0, le=9)

    backend = Steps("It is 4.", '{"value": 4}')
    agent = FunctionAgent(tools=[], llm=big(backend), streaming=False, output_cls=Sum)
    output: Any = await agent.run("2 + 2?")
    assert output.structured_response == {"value": 4}
    guard = output.raw["guard"]
    assert Provenance.from_dict(guard).as_asked
