"""`/v1/chat/completions`, through OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.conftest import MakeModel

from ._asking import ASK, CALL, DIGITS, THOUGHT, Digit, openai_client
from .conftest import ANSWER, Running, Serve

ADD: Any = {"type": "function", "function": {"name": "add", "parameters": DIGITS}}


@pytest.fixture
def client(paris: Running) -> Iterator[openai.OpenAI]:
    with openai_client(paris) as client:
        yield client


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_a_whole_answer(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="paris", messages=ASK)
    answer = raw.parse()
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    assert (choice.finish_reason, answer.model, answer.object) == (
        "stop",
        "paris",
        "chat.completion",
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    guard = answer.model_dump()["guard"]
    assert guard["request_id"] == answer.id == raw.headers["x-guard-request-id"]
    assert guard["served_model"] == raw.headers["x-guard-served-model"] == "paris"
    assert raw.headers["x-guard-fallback"] == "false" and raw.headers["x-request-id"]


def test_a_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="paris", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    *content, last, usage = chunks
    assert text_of(chunks) == ANSWER
    assert content[0].choices[0].delta.role == "assistant"
    assert len(content) > 5
    assert last.choices[0].finish_reason == "stop"
    assert all(chunk.choices[0].finish_reason is None for chunk in content)
    assert last.model_dump()["guard"]["served_model"] == "paris"
    assert usage.choices == [] and usage.usage is not None and usage.usage.completion_tokens > 5
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_no_usage_unless_asked_for(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="paris", messages=ASK, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_the_async_client(paris: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{paris.url}/v1", api_key="none") as client:
        answer = await client.chat.completions.create(model="paris", messages=ASK)
        assert answer.choices[0].message.content == ANSWER
        stream = await client.chat.completions.create(model="paris", messages=ASK, stream=True)
        assert text_of([chunk async for chunk in stream]) == ANSWER


def test_the_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="paris", messages=ASK) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content == ANSWER
    assert {"content.delta", "content.done", "chunk"} <= kinds


def test_what_ends_an_answer(client: openai.OpenAI) -> None:
    for limit in ({"max_tokens": 4}, {"max_completion_tokens": 4}):
        cut = client.chat.completions.create(model="paris", messages=ASK, **limit)  # type: ignore[call-overload]
        assert cut.choices[0].finish_reason == "length"
        assert cut.usage.completion_tokens == 4
        assert ANSWER.startswith(cut.choices[0].message.content)
    stopped = client.chat.completions.create(model="paris", messages=ASK, stop=" Paris")
    assert stopped.choices[0].message.content == "The capital of France is"
    assert stopped.choices[0].finish_reason == "stop"


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="paris", messages=ASK, logprobs=True, top_logprobs=2, max_tokens=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 3
    for token in logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 2
        assert token.top_logprobs[0].token == token.token
    chunks = client.chat.completions.create(
        model="paris", messages=ASK, logprobs=True, max_tokens=3, stream=True
    )
    streamed = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
    assert sum(len(part.content or ()) for part in streamed) == 3


def test_choices_and_seeds(serve: Serve, tiny: MakeModel) -> None:
    with openai_client(serve(models={"noise": tiny()})) as client:
        options: Any = {"model": "noise", "messages": ASK, "max_tokens": 8, "temperature": 1.5}
        answer = client.chat.completions.create(**options, n=3, seed=7)
        texts = [choice.message.content for choice in answer.choices]
        assert len(set(texts)) == 3
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.completion_tokens == 24
        again = client.chat.completions.create(**options, seed=8)
        assert again.choices[0].message.content == texts[1]
        chunks = list(client.chat.completions.create(**options, n=3, seed=7, stream=True))
        for place, text in enumerate(texts):
            parts = [
                c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == place
            ]
            assert "".join(parts) == text
        ends = [c for c in chunks if c.choices[0].finish_reason]
        assert len(ends) == 3


def test_tools(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"caller": scripted(CALL * 2, tools=True)})
    with openai_client(running) as client:
        answer = client.chat.completions.create(model="caller", messages=ASK, tools=[ADD])
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        calls = choice.message.tool_calls or []
        assert [(c.type, json.loads(c.function.arguments)) for c in calls] == [  # type: ignore[union-attr]
            ("function", {"a": 3, "b": 4})
        ] * 2
        assert calls[0].id != calls[1].id
        chunks = list(
            client.chat.completions.create(model="caller", messages=ASK, tools=[ADD], stream=True)
        )
        deltas = [c.choices[0].delta.tool_calls for c in chunks if c.choices[0].delta.tool_calls]
        assert [[d.index for d in delta] for delta in deltas] == [[0], [1]]
        assert all(delta[0].type == "function" and delta[0].id for delta in deltas)
        result = {"role": "tool", "tool_call_id": calls[0].id, "content": "7"}
        other = {**result, "tool_call_id": calls[1].id}
        thread: Any = [*ASK, choice.message.model_dump(), result, other]
        again = client.chat.completions.create(
            model="caller", messages=thread, tools=[ADD], tool_choice="none"
        )
        assert again.choices[0].message.tool_calls is None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_forced_call(serve: Serve, tiny: MakeModel, choice: Any) -> None:
    with openai_client(serve(models={"noise": tiny()})) as client:
        answer = client.chat.completions.create(
            model="noise", messages=ASK, tools=[ADD], tool_choice=choice, parallel_tool_calls=False
        )
        (call,) = answer.choices[0].message.tool_calls or []
        assert set(json.loads(call.function.arguments)) == {"a", "b"}  # type: ignore[union-attr]


def test_a_call_that_is_cut_off_is_kept_and_flagged(serve: Serve, scripted: MakeModel) -> None:
    model = {"model": scripted(CALL, tools=True), "retry": {"attempts": 1}}
    with openai_client(serve(models={"caller": model})) as client:
        options: Any = {"model": "caller", "messages": ASK, "tools": [ADD], "max_tokens": 12}
        answer = client.chat.completions.create(**options)
        message = answer.choices[0].message
        assert message.content and "add" in message.content and not message.tool_calls
        assert message.model_dump()["invalid_tool_calls"][0]["error"]
        assert "tool_call" in answer.model_dump()["guard"]["degraded"]
        chunks = list(client.chat.completions.create(**options, stream=True))
        assert text_of(chunks) == message.content
        assert any("invalid_tool_calls" in c.choices[0].delta.model_dump() for c in chunks)


def test_parse_makes_an_object(serve: Serve, tiny: MakeModel) -> None:
    with openai_client(serve(models={"noise": tiny()})) as client:
        answer = client.chat.completions.parse(
            model="noise", messages=ASK, response_format=Digit, seed=1
        )
        assert isinstance(answer.choices[0].message.parsed, Digit)
        loose = client.chat.completions.create(
            model="noise", messages=ASK, response_format={"type": "json_object"}, max_tokens=400
        )
        if loose.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(loose.choices[0].message.content or ""), dict)


def test_thinking_is_no_content(serve: Serve, scripted: MakeModel) -> None:
    model = scripted(THOUGHT, thinking=True)
    running = serve(models={"thinker": model, "paris": scripted(ANSWER)})
    with openai_client(running) as client:
        answer = client.chat.completions.create(
            model="thinker", messages=ASK, reasoning_effort="low"
        )
        message = answer.choices[0].message
        assert message.content == "Paris."
        assert message.model_dump()["reasoning_content"].strip() == "Well."
        assert answer.usage is not None and answer.usage.completion_tokens_details is not None
        thinking = answer.usage.completion_tokens_details.reasoning_tokens
        assert thinking is not None and 2 < thinking < answer.usage.completion_tokens - 1
        chunks = list(client.chat.completions.create(model="thinker", messages=ASK, stream=True))
        assert text_of(chunks) == "Paris."
        thought = [c.choices[0].delta.model_dump().get("reasoning_content") for c in chunks]
        assert "".join(part or "" for part in thought).strip() == "Well."
        short = client.chat.completions.create(
            model="thinker", messages=ASK, extra_body={"thinking_budget": 1}
        )
        assert short.choices[0].message.content == "Paris." and short.usage is not None
        details = short.usage.completion_tokens_details
        assert details is not None and details.reasoning_tokens == 1 + 2  # its markers
        with pytest.raises(openai.BadRequestError, match="does not reason"):
            client.chat.completions.create(model="paris", messages=ASK, reasoning_effort="low")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"functions": []}, "functions"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"audio": {}}, "audio"),
        ({"modalities": ["audio"]}, "modalities.0"),
        ({"store": True}, "store"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, ""),
        ({"n": 0}, "n"),
        ({"n": 17}, "choices"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {}}, "stream_options"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"tool_choice": "required"}, ""),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}}, ""),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, ""),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                ]
            },
            "",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_it_cannot_do_is_refused_by_name(
    paris: Running, wrong: dict[str, Any], param: str, stream: bool
) -> None:
    body = {"model": "paris", "messages": ASK, "stream": stream} | wrong
    if "stream_options" in wrong and stream:
        return
    reply = paris.client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["param"] or "") == param
    assert error["type"] == "invalid_request_error" and error["message"]


def test_bookkeeping_changes_nothing(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="paris", messages=ASK, user="me", metadata={"a": "b"}, store=False,
        service_tier="auto", safety_identifier="x", prompt_cache_key="k",
    )  # fmt: skip
    assert answer.choices[0].message.content == ANSWER
