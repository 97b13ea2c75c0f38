"""Other LLMs of LlamaIndex as candidates of a `GuardedLLM`."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    LLMMetadata,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms import MockLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.tools import BaseTool
from llama_index.llms.mlx_guarded import LlamaIndexCandidate
from pydantic import BaseModel

from mlx_guarded_llm.errors import DegradedAnswer, ModelNotFound, ModelUnsupported, RequestTimeout
from mlx_guarded_llm.fallback import Call
from tests.llama_index._helpers import SOON, Fake, big, user

QUESTION = [{"role": "user", "content": "What is 6 times 7?"}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
ADD = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
FLY = {"type": "function", "function": {"name": "fly", "description": "Up.", "parameters": SCHEMA}}


class Caller(MockFunctionCallingLLM):
    """An LLM that calls tools; it answers with the given blocks and notes what it was asked."""

    blocks: list[Any]
    raw: Any = None
    asked: list[dict[str, Any]]

    def _prepare_chat_with_tools(
        self, tools: Sequence[BaseTool], *arguments: Any, tool_required: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        shown = [tool.metadata.to_openai_tool() for tool in tools]
        self.asked.append({"tools": shown, "tool_required": tool_required, **kwargs})
        return {"messages": kwargs["chat_history"]}

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        self.asked.append({"messages": list(messages)})
        message = ChatMessage(role="assistant", blocks=self.blocks)
        return ChatResponse(message=message, raw=self.raw)


def caller(*blocks: Any, raw: Any = None) -> Caller:
    return Caller(blocks=list(blocks), raw=raw, asked=[])


CALL = ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"n": 3})


def test_the_name_is_the_models_or_else_the_classs() -> None:
    class Named(MockLLM):
        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(model_name="gpt-x")

    assert LlamaIndexCandidate(MockLLM()).name == "MockLLM"
    assert LlamaIndexCandidate(Named(max_tokens=None)).name == "gpt-x"


@pytest.mark.parametrize("prompt", ["Echo.", [{"role": "user", "content": "Echo."}]])
def test_a_chat(prompt: Any) -> None:
    result = LlamaIndexCandidate(MockLLM()).generate(Call(prompt=prompt, request_id="r"))
    assert "Echo." in result.text
    assert (result.guard.served_model, result.guard.request_id) == ("MockLLM", "r")
    assert result.finish_reason == "stop"


async def test_an_awaited_chat() -> None:
    result = await LlamaIndexCandidate(MockLLM()).agenerate(Call(prompt="Echo."))
    assert "Echo." in result.text


def test_plain_text_is_a_completion() -> None:
    llm = MockLLM(max_tokens=2)
    result = LlamaIndexCandidate(llm).generate(Call(prompt="one two three", options={"raw": True}))
    assert result.text == "text text", "what MockLLM completes"


def test_token_ids_are_those_of_a_local_model() -> None:
    with pytest.raises(ModelUnsupported, match="token ids"):
        LlamaIndexCandidate(MockLLM()).generate(Call(prompt=[1, 2], options={"raw": True}))


def test_thinking_and_usage_are_kept() -> None:
    llm = caller(
        ThinkingBlock(content="hm"),
        TextBlock(text="42"),
        raw={"usage": {"prompt_tokens": 5, "completion_tokens": 2}},
    )
    result = LlamaIndexCandidate(llm).generate(Call(prompt=QUESTION))
    assert (result.reasoning, result.text) == ("hm", "42")
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (5, 2)


@pytest.mark.parametrize("raw", [None, 3, "text", {"usage": None}, {"usage": {}}])
def test_a_raw_answer_that_tells_no_usage_is_no_error(raw: Any) -> None:
    result = LlamaIndexCandidate(caller(TextBlock(text="42"), raw=raw)).generate(Call(prompt="?"))
    assert result.usage.total_tokens == 0


class _Raw(BaseModel):
    choices: list[dict[str, Any]] = [{"finish_reason": "length"}]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(_Raw(), id="openai object"),
        pytest.param(_Raw().model_dump(), id="openai"),
        pytest.param({"stop_reason": "max_tokens"}, id="anthropic"),
        pytest.param({"finish_reason": "MAX_TOKENS"}, id="gemini"),
        pytest.param({"done_reason": "length"}, id="ollama"),
    ],
)
def test_an_answer_that_was_cut_off_says_so(raw: Any) -> None:
    llm = caller(TextBlock(text="4"), raw=raw)
    assert LlamaIndexCandidate(llm).generate(Call(prompt="?")).finish_reason == "length"
    primary = big(Fake(big=[ModelNotFound("gone.")]), fallbacks=[llm], on_fallback="mark")
    with pytest.raises(DegradedAnswer):
        primary.chat(user())


def test_an_answer_ends_before_a_stop_string() -> None:
    candidate = LlamaIndexCandidate(caller(TextBlock(text="one STOP two END")))
    for stop in ("STOP", ["END", "STOP"]):
        call = Call(prompt="?", options={"stop": stop})
        assert candidate.generate(call).text == "one "


# ---- tools and schemas ---------------------------------------------------------------


def test_tools_are_passed_on() -> None:
    llm = caller(CALL)
    options = {"tools": [ADD, FLY], "tool_choice": "required", "parallel_tool_calls": False}
    result = LlamaIndexCandidate(llm).generate(Call(prompt=QUESTION, options=options))
    (call,) = result.tool_calls
    assert (call.id, call.name, call.arguments) == ("c1", "add", {"n": 3})
    assert result.finish_reason == "tool_calls"
    asked = llm.asked[0]
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["add", "fly"]
    assert asked["tools"][1]["function"]["description"] == "Up."
    assert asked["tools"][0]["function"]["parameters"] == SCHEMA
    assert asked["tool_required"] and not asked["allow_parallel_tool_calls"]
    assert asked["chat_history"] == user()


@pytest.mark.parametrize("name", ["clock.now", "uhr/größe", "add"])
def test_a_call_comes_back_under_the_name_that_was_offered(name: str) -> None:
    """LlamaIndex spells it as OpenAI wants it, which other tools must not suffer from."""
    spelt = re.sub(r"[^a-zA-Z0-9_-]", "_", name)
    llm = caller(ToolCallBlock(tool_call_id="c1", tool_name=spelt, tool_kwargs={}))
    tool = {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    result = LlamaIndexCandidate(llm).generate(Call(prompt="Hi", options={"tools": [tool]}))
    assert [call.name for call in result.tool_calls] == [name]
    assert llm.asked[0]["tools"][0]["function"]["name"] == spelt


def test_a_named_tool_stands_alone() -> None:
    llm = caller(CALL)
    choice = {"type": "function", "function": {"name": "add"}}
    call = Call(prompt="?", options={"tools": [ADD, FLY], "tool_choice": choice})
    LlamaIndexCandidate(llm).generate(call)
    assert [tool["function"]["name"] for tool in llm.asked[0]["tools"]] == ["add"]
    assert llm.asked[0]["tool_required"]


def test_tools_that_may_not_be_called_are_not_offered() -> None:
    llm = caller(TextBlock(text="42"))
    call = Call(prompt=QUESTION, options={"tools": [ADD], "tool_choice": "none"})
    assert LlamaIndexCandidate(llm).generate(call).text == "42"
    assert llm.asked == [{"messages": user()}]


def test_a_schema_becomes_a_tool_that_must_be_called() -> None:
    llm = caller(ToolCallBlock(tool_call_id="c1", tool_name="answer", tool_kwargs={"n": 3}))
    call = Call(prompt="?", options={"schema": SCHEMA})
    result = LlamaIndexCandidate(llm).generate(call)
    assert (result.text, result.tool_calls, result.finish_reason) == ('{"n": 3}', (), "stop")
    assert llm.asked[0]["tools"][0]["function"]["parameters"] == SCHEMA


def test_a_schema_becomes_an_instruction_where_no_tool_helps() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    result = LlamaIndexCandidate(MockLLM()).generate(
        Call(prompt=messages, options={"schema": SCHEMA})
    )
    assert '"properties": {"n": {"type": "integer"}}' in result.text, "MockLLM echoes it"
    llm = caller(TextBlock(text="[1]"))
    LlamaIndexCandidate(llm).generate(Call(prompt="?", options={"schema": {"type": "array"}}))
    (message,) = llm.asked[0]["messages"]
    assert '{"type": "array"}' in str(message.content)


def test_the_wish_for_json_follows_an_answer_as_a_message_of_its_own() -> None:
    llm = caller(TextBlock(text="[1]"))
    prompt = [*QUESTION, {"role": "assistant", "content": "Hm."}]
    LlamaIndexCandidate(llm).generate(Call(prompt=prompt, options={"schema": {"type": "array"}}))
    assert [m.role.value for m in llm.asked[0]["messages"]] == ["user", "assistant", "user"]


def test_an_answer_that_does_not_match_the_schema_is_degraded() -> None:
    primary = big(
        Fake(big=[ModelNotFound("gone.")]), fallbacks=[MockLLM()], on_fallback="mark", retry=SOON
    )
    with pytest.raises(DegradedAnswer) as caught:
        primary.chat(user(), schema=SCHEMA)
    assert caught.value.reasons == ("schema",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": [ADD]}, "cannot call tools"),
        ({"regex": "[0-9]+"}, "cannot hold its answer to a regex"),
        ({"grammar": "start: /a/"}, "cannot hold its answer to a grammar"),
    ],
)
def test_what_it_cannot_do_is_an_error_that_lets_another_answer(options: Any, words: str) -> None:
    with pytest.raises(ModelUnsupported, match=words) as caught:
        LlamaIndexCandidate(MockLLM()).generate(Call(prompt="?", options=options))
    assert caught.value.fallback and not caught.value.retryable


# ---- time ----------------------------------------------------------------------------


def test_past_its_time_it_is_not_waited_for() -> None:
    end = threading.Event()

    class Slow(MockLLM):
        def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            end.wait(60)
            return ChatResponse(message=ChatMessage(role="assistant", content="late"))

    with pytest.raises(RequestTimeout, match="MockLLM gave no answer"):
        LlamaIndexCandidate(Slow(max_tokens=None)).generate(Call(prompt="?", timeout=0.01))
    end.set()


async def test_past_its_time_it_is_cancelled() -> None:
    cancelled = asyncio.Event()

    class Slow(MockLLM):
        async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()
            raise AssertionError("it was waited for")

    with pytest.raises(RequestTimeout):
        await LlamaIndexCandidate(Slow(max_tokens=None)).agenerate(Call(prompt="?", timeout=0.01))
    assert cancelled.is_set()


def broken(error: Exception) -> MockLLM:
    class Broken(MockLLM):
        def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            raise error

        async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            raise error

    return Broken(max_tokens=None)


@pytest.mark.parametrize("error", [RuntimeError("no credit"), TimeoutError("its own")])
async def test_its_own_errors_come_through(error: Exception) -> None:
    candidate = LlamaIndexCandidate(broken(error))
    with pytest.raises(type(error)) as caught:
        candidate.generate(Call(prompt="?", timeout=30.0))
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        await candidate.agenerate(Call(prompt="?", timeout=30.0))
    assert caught.value is error


def test_the_attempts_at_a_fallback_that_fails_are_told() -> None:
    llm = big(
        Fake(big=[ModelNotFound("gone.")]),
        fallbacks=[broken(RuntimeError("no credit")), "small"],
        on_fallback="mark",
    )
    raw: Any = llm.chat(user()).raw
    attempts = raw["guard"]["attempts"]
    assert [attempt["outcome"] for attempt in attempts] == ["error"] * 4 + ["ok"]
    assert all("no credit" in attempt["error"] for attempt in attempts[1:4])


def test_the_schema_of_a_tool_is_there_as_a_class() -> None:
    """Gemini's LLM reads no other, and would offer a tool that takes one text."""
    offered: list[Any] = []

    class Reads(type(caller(CALL))):  # type: ignore[misc]
        def _prepare_chat_with_tools(self, tools: Any, **kwargs: Any) -> dict[str, Any]:
            offered.extend(tools)
            return {"messages": kwargs["chat_history"]}

    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    llm = caller(CALL)
    reads = Reads.model_construct(**llm.__dict__)
    LlamaIndexCandidate(reads).generate(Call(prompt="Hi", options={"tools": [tool]}))
    assert offered[0].metadata.fn_schema.model_json_schema() == parameters


class Unsure(MockLLM):
    """As LLMs of providers are whose model is newer than their package."""

    @property
    def metadata(self) -> LLMMetadata:
        raise ValueError("Unknown model 'x-9'.")


def test_one_that_does_not_know_its_model_stops_no_others() -> None:
    llm = big(Fake(), fallbacks=[Unsure(max_tokens=9)])
    assert llm.complete("?").raw["model"] == "big"
    assert LlamaIndexCandidate(Unsure(max_tokens=9)).name == Unsure.class_name()
