"""`/v1/messages`, through Anthropic's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from mlx_guarded_llm.testing.chat_templates import chatml
from tests.conftest import MakeModel

from ._asking import ASK, CALL, DIGITS, THOUGHT, Digit, named_events
from ._wait import until
from .conftest import ANSWER, Running, Serve

ADD: Any = {
    "name": "add",
    "description": "Adds two digits.",
    "input_schema": DIGITS,
}


def client_of(running: Running, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=running.url, api_key="none", timeout=60, max_retries=0, **options
    )


@pytest.fixture
def client(paris: Running) -> Iterator[anthropic.Anthropic]:
    with client_of(paris) as client:
        yield client


def events_of(running: Running, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream, each with its name."""
    return [(event["type"], event) for event in named_events(running, "/v1/messages", body)]


def prompt_of(running: Running, **body: Any) -> str:
    """The prompt that a body makes."""
    return json.dumps(options_of(running, **body)["prompt"], ensure_ascii=False)


def functions(*tools: Any) -> list[dict[str, Any]]:
    """Tools in the form in which a backend takes them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool["name"],
                "parameters": tool["input_schema"],
                "description": tool["description"],
            },
        }
        for tool in tools
    ]


def options_of(running: Running, **body: Any) -> dict[str, Any]:
    """What a backend is asked for a body."""
    seen: list[dict[str, Any]] = []
    tokens = running.backend.atokens

    async def looking(model: str, **options: Any) -> list[int]:
        seen.append(options)
        return await tokens(model, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.backend, "atokens", looking)
        reply = running.client.post("/v1/messages/count_tokens", json={"model": "paris", **body})
    assert reply.status_code == 200, reply.text
    [options] = seen
    return options


def test_a_whole_answer(client: anthropic.Anthropic) -> None:
    raw = client.messages.with_raw_response.create(model="paris", max_tokens=100, messages=ASK)
    message = raw.parse()
    [block] = message.content
    assert block.type == "text" and block.text == ANSWER
    assert (message.role, message.type, message.model) == ("assistant", "message", "paris")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens > 5 and message.usage.input_tokens > 20
    guard = message.model_dump()["guard"]
    assert guard["request_id"] == message.id == raw.headers["x-guard-request-id"]
    assert guard["served_model"] == raw.headers["x-guard-served-model"] == "paris"
    assert message._request_id == raw.headers["x-request-id"]


def test_the_events_of_a_stream(paris: Running) -> None:
    found = events_of(paris, {"model": "paris", "max_tokens": 100, "messages": ASK})
    names = [name for name, _ in found]
    assert names[:3] == ["message_start", "content_block_start", "content_block_delta"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[3:-3]) == {"content_block_delta"}
    deltas = [data["delta"] for name, data in found if name == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == ANSWER
    assert found[0][1]["message"]["content"] == [] and found[0][1]["message"]["usage"]
    last = found[-2][1]
    assert last["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert last["usage"]["output_tokens"] > 5 and last["guard"]["served_model"] == "paris"


def test_the_prompt_is_counted_when_a_stream_begins(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"paris": scripted(ANSWER)}, early_errors=60)
    asked = {"model": "paris", "max_tokens": 9, "messages": ASK}
    running.backend.load("paris")  # its progress would be told first
    found = dict(events_of(running, asked))
    begun = found["message_start"]["message"]["usage"]
    ended = found["message_delta"]["usage"]
    names = ("input_tokens", "cache_read_input_tokens")
    assert sum(begun[name] for name in names) == sum(ended[name] for name in names) > 20


def test_the_stream_helper(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="paris", max_tokens=100, messages=ASK) as stream:
        assert "".join(stream.text_stream) == ANSWER
        message = stream.get_final_message()
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens > 20 and message.usage.output_tokens > 5


async def test_the_async_client(paris: Running) -> None:
    async with anthropic.AsyncAnthropic(base_url=paris.url, api_key="none") as client:
        message = await client.messages.create(model="paris", max_tokens=100, messages=ASK)
        assert message.content[0].text == ANSWER  # type: ignore[union-attr]
        async with client.messages.stream(model="paris", max_tokens=9, messages=ASK) as stream:
            final = await stream.get_final_message()
        assert final.stop_reason == "max_tokens" and final.usage.output_tokens == 9


def test_what_ends_an_answer(client: anthropic.Anthropic) -> None:
    options: Any = {"model": "paris", "messages": ASK, "stop_sequences": ["and", " Paris"]}
    stopped = client.messages.create(**options, max_tokens=100)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " Paris")
    assert stopped.content[0].text == "The capital of France is"
    with client.messages.stream(**options, max_tokens=100) as stream:
        streamed = stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", " Paris")
    assert client.messages.create(**options, max_tokens=4).stop_reason == "max_tokens"


def test_sampling(serve: Serve, tiny: MakeModel) -> None:
    with client_of(serve(models={"noise": tiny()})) as client:
        message = client.messages.create(
            model="noise", max_tokens=8, messages=ASK,
            extra_body={"temperature": 0.7, "top_k": 5, "top_p": 0.9},
        )  # fmt: skip
        sampling = message.model_dump()["guard"]["sampling"]
        assert sampling | {"temperature": 0.7, "top_p": 0.9, "top_k": 5} == sampling


def test_tools(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"caller": scripted("I add. " + CALL * 2, tools=True)})
    with client_of(running) as client:
        options: Any = {"model": "caller", "max_tokens": 300, "tools": [ADD]}
        message = client.messages.create(**options, messages=ASK)
        assert message.stop_reason == "tool_use"
        text, one, two = message.content
        assert text.type == "text" and text.text.strip() == "I add."
        for call in (one, two):
            assert call.type == "tool_use" and call.name == "add"
            assert call.input == {"a": 3, "b": 4}
        assert one.id != two.id
        with client.messages.stream(**options, messages=ASK) as stream:
            kinds = {event.type for event in stream}
            streamed = stream.get_final_message()
        assert "input_json" in kinds and streamed.stop_reason == "tool_use"
        assert [b.to_dict() | {"id": ""} for b in streamed.content] == [
            b.to_dict() | {"id": ""} for b in message.content
        ]
        results = [
            {"type": "tool_result", "tool_use_id": two.id, "content": "8"},
            {"type": "tool_result", "tool_use_id": one.id, "is_error": True,
             "content": [{"type": "text", "text": "No."}]},
            {"type": "text", "text": "Go on."},
        ]  # fmt: skip
        thread: Any = [
            *ASK,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": results},
        ]
        again = client.messages.create(**options, messages=thread, tool_choice={"type": "none"})
        assert {block.type for block in again.content} == {"text"}
        single = client.messages.create(
            **options,
            messages=ASK,
            tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        )
        assert [block.type for block in single.content] == ["text", "tool_use"]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}])
def test_a_forced_call(serve: Serve, tiny: MakeModel, choice: Any) -> None:
    with client_of(serve(models={"noise": tiny()})) as client:
        choice = {**choice, "disable_parallel_tool_use": True}
        message = client.messages.create(
            model="noise", max_tokens=200, messages=ASK, tools=[ADD], tool_choice=choice
        )
        [call] = message.content
        assert call.type == "tool_use" and set(call.input) == {"a", "b"}


def test_a_call_that_is_none_is_kept_and_flagged(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"caller": {"model": scripted(CALL, tools=True)}})
    body = {"model": "caller", "max_tokens": 12, "messages": ASK, "tools": [ADD]}
    message = running.client.post("/v1/messages", json=body).json()
    assert '"name": "add"' in message["content"][0]["text"]
    assert message["stop_reason"] == "max_tokens"
    assert message["invalid_tool_calls"][0]["error"]
    assert "tool_call" in message["guard"]["degraded"]
    last = dict(events_of(running, body))["message_delta"]
    assert last["invalid_tool_calls"][0]["error"] and "tool_call" in last["guard"]["degraded"]


def test_thinking(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"thinker": scripted(THOUGHT, thinking=True)})
    with client_of(running) as client:
        options: Any = {"model": "thinker", "max_tokens": 2000}
        message = client.messages.create(
            **options, messages=ASK, thinking={"type": "enabled", "budget_tokens": 1024}
        )
        thinking, text = message.content
        assert thinking.type == "thinking" and thinking.thinking.strip() == "Well."
        assert thinking.signature and text.type == "text" and text.text == "Paris."
        details = message.usage.output_tokens_details
        assert details is not None and 2 < details.thinking_tokens < message.usage.output_tokens - 1
        with client.messages.stream(**options, messages=ASK) as stream:
            streamed = stream.get_final_message()
        assert streamed.usage.output_tokens_details == details
        assert [block.to_dict() | {"parsed_output": None} for block in streamed.content] == [
            block.to_dict() | {"parsed_output": None} for block in message.content
        ]
        thread: Any = [
            *ASK,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": "Why?"},
        ]
        assert client.messages.create(**options, messages=thread).stop_reason == "end_turn"


def test_a_thinking_budget(serve: Serve, scripted: MakeModel) -> None:
    thought = "Well, well, well: is it Paris or is it not?"
    running = serve(models={"thinker": scripted(f"<think>{thought}</think>Paris.", thinking=True)})
    options: Any = {"model": "thinker", "max_tokens": 200, "messages": ASK}
    with client_of(running) as client:
        short: Any = {"type": "enabled", "budget_tokens": 3}
        message = client.messages.create(**options, thinking=short)
        with client.messages.stream(**options, thinking=short) as stream:
            streamed = stream.get_final_message()
        for answer in (message, streamed):
            content: Any = answer.content
            thinking, text = content
            assert thinking.type == "thinking" and thought.startswith(thinking.thinking)
            assert text.type == "text" and text.text == "Paris."
            assert answer.stop_reason == "end_turn"
            details = answer.usage.output_tokens_details
            assert details is not None and details.thinking_tokens == 3 + 2  # its markers
        freely: Any = ({"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"})
        for free in freely:
            first = client.messages.create(**options, thinking=free).content[0]
            assert first.type == "thinking" and first.thinking == thought
        count = client.messages.count_tokens(model="thinker", messages=ASK, thinking=short)
        assert count.input_tokens > 0
        with pytest.raises(anthropic.BadRequestError, match="budget_tokens"):
            client.messages.create(**options, thinking={"type": "enabled", "budget_tokens": -1})


def test_thinking_can_be_switched_off(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"paris": scripted(ANSWER, thinking=True)})
    counts = [
        running.client.post(
            "/v1/messages/count_tokens", json={"model": "paris", "messages": ASK, **more}
        ).json()["input_tokens"]
        for more in ({}, {"thinking": {"type": "adaptive"}}, {"thinking": {"type": "disabled"}})
    ]
    assert counts[0] == counts[1] < counts[2]  # the template closes it at once


def test_a_schema(serve: Serve, tiny: MakeModel) -> None:
    with client_of(serve(models={"noise": tiny()})) as client:
        message = client.messages.parse(
            model="noise", max_tokens=200, messages=ASK, output_format=Digit
        )
        assert isinstance(message.parsed_output, Digit)


def test_an_answer_that_the_client_began(serve: Serve, tiny: MakeModel) -> None:
    running = serve(models={"noise": tiny()})
    thread: Any = [*ASK, {"role": "assistant", "content": "The capital of"}]
    with client_of(running) as client:
        message = client.messages.create(model="noise", max_tokens=8, messages=thread)
    alone = running.backend.generate("noise", thread, continue_final_message=True, max_tokens=8)
    assert message.content[0].text == alone.text  # type: ignore[union-attr]
    assert message.usage.input_tokens == alone.usage.prompt_tokens


def test_what_the_model_reads(paris: Running) -> None:
    billing = "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=fa690;"
    rest = [{"type": "text", "text": t, "cache_control": {"type": "ephemeral"}} for t in "ab"]
    prompts = {
        prompt_of(paris, system=system, messages=ASK)
        for system in (
            "a\n\nb",
            rest,
            [{"type": "text", "text": billing}, *rest],
            f"{billing}\na\n\nb",
        )
    }
    [prompt] = prompts
    assert json.loads(prompt)[0] == {"role": "system", "content": "a\n\nb"}
    thread = [
        {"role": "user", "content": [{"type": "text", "text": text} for text in ("one", "two")]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "of another server"},
            {"type": "redacted_thinking", "data": "xyz"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "it"}},
        ]},
        {"role": "user", "content": [
            {"type": "text", "text": "And?"},
            {"type": "tool_result", "tool_use_id": "c1", "content": "seen", "is_error": True},
        ]},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Well?"},
    ]  # fmt: skip
    function = {"name": "look", "arguments": {"at": "it"}}
    assert json.loads(prompt_of(paris, messages=thread)) == [
        {"role": "user", "content": "one\n\ntwo"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "Error: seen"},
        {"role": "user", "content": "And?"},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Well?"},
    ]


def test_a_tool_is_shown_once_a_search_of_the_clients_has_found_it(paris: Running) -> None:
    other = {**ADD, "name": "subtract", "defer_loading": True}
    body: dict[str, Any] = {"tools": [ADD, other]}
    call = {"type": "tool_use", "id": "c", "name": "find", "input": {}}
    found = {"type": "tool_reference", "tool_name": "subtract"}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [found]}
    later = [
        *ASK,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    assert options_of(paris, **body, messages=ASK)["tools"] == functions(ADD)
    options = options_of(paris, **body, messages=later)
    assert options["tools"] == functions(ADD, other)
    assert options["prompt"][-1]["content"] == "The tool subtract can be called now."


@pytest.mark.parametrize("kind", ["image", "document"])
def test_claude_code_learns_which_image_to_take_out(paris: Running, kind: str) -> None:
    seen = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": kind, "source": {}}]}
    call = {"type": "tool_use", "id": "c", "name": "look", "input": {}}
    messages = [
        *ASK,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [seen]},
    ]
    body = {"model": "paris", "max_tokens": 10, "messages": messages}
    error = paris.client.post("/v1/messages", json=body).json()["error"]
    place = "messages.2.content.0.tool_result.content.0"
    assert error["param"] == place
    assert error["message"].startswith(f"{place}.{kind}: Could not process {kind}.")


def test_a_system_message_in_the_middle_of_what_a_strict_template_takes(
    serve: Serve, scripted: MakeModel
) -> None:
    strict = (
        "{%- for message in messages %}{%- if message.role == 'system' and not loop.first %}"
        "{{- raise_exception('System message must be at the beginning.') }}{%- endif %}"
        "{%- endfor %}" + chatml()
    )
    with client_of(serve(models={"paris": scripted(ANSWER, chat_template=strict)})) as client:
        reminder: Any = {"role": "system", "content": "12 tokens left."}
        answer: Any = {"role": "assistant", "content": ANSWER}
        for thread in (
            [*ASK, reminder],
            [reminder, *ASK],
            [*ASK, reminder, *ASK],
            [*ASK, reminder, answer, *ASK, reminder],
        ):
            message = client.messages.create(
                model="paris", max_tokens=100, system="Be brief.", messages=thread
            )
            assert message.content[0].text == ANSWER  # type: ignore[union-attr]


async def test_fifty_counts_at_once(paris: Running) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=paris.url, api_key="none", max_retries=0
    ) as client:
        counts = await asyncio.gather(
            *(
                client.messages.count_tokens(
                    model="paris", messages=[{"role": "user", "content": "x" * i}], tools=[ADD]
                )
                for i in range(1, 51)
            )
        )
    numbers = [count.input_tokens for count in counts]
    assert numbers == list(range(numbers[0], numbers[0] + 50))  # each token is a byte
    assert paris.backend.models() == []  # for that no weights are loaded


def test_a_count_is_what_the_answer_costs(client: anthropic.Anthropic) -> None:
    options: Any = {"model": "paris", "messages": ASK, "system": "Be brief.", "tools": [ADD]}
    count = client.messages.count_tokens(**options).input_tokens
    usage = client.messages.create(**options, max_tokens=5).usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == count


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"mcp_servers": []}, "mcp_servers"),
        ({"container": "x"}, "container"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": 1000}, ""),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages.0.role"),
        ({"system": [{"type": "image"}]}, "system.0"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"tools": [{"name": "x"}]}, "tools"),
        ({"tool_choice": {"type": "any"}}, ""),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": 3}}}}, ""),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages.0.content.0",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
            "messages.0.content.0.tool_use_id",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_it_cannot_do_is_refused_by_name(
    paris: Running, wrong: dict[str, Any], param: str, stream: bool
) -> None:
    body = {"model": "paris", "max_tokens": 10, "messages": ASK, "stream": stream} | wrong
    reply = paris.client.post("/v1/messages", json=body)
    assert reply.status_code == 400, reply.text
    said = reply.json()
    assert said["type"] == "error" and said["error"]["type"] == "invalid_request_error"
    assert (said["error"]["param"] or "") == param and said["error"]["message"]


def test_bookkeeping_changes_nothing(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model="paris", max_tokens=100, messages=ASK, metadata={"user_id": "me"},
        service_tier="auto", cache_control={"type": "ephemeral"},
        extra_body={"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}},
        thinking={"type": "adaptive"}, output_config={"effort": "high"},
    )  # fmt: skip
    assert message.content[0].text == ANSWER  # type: ignore[union-attr]


class TestErrors:
    def test_kinds(self, serve: Serve, scripted: MakeModel) -> None:
        running = serve(
            models={"paris": scripted(ANSWER, context_window=128)}, keys={"a": {"key": "k"}}
        )
        with client_of(running) as client, pytest.raises(anthropic.AuthenticationError) as raised:
            client.messages.create(model="paris", max_tokens=10, messages=ASK)
        assert raised.value.type == "authentication_error"
        for shown in ({"api_key": "k"}, {"api_key": None, "auth_token": "k"}):
            with anthropic.Anthropic(base_url=running.url, **shown) as client:
                with pytest.raises(anthropic.NotFoundError, match="There are: paris"):
                    client.messages.create(model="claude-opus-5", max_tokens=10, messages=ASK)
                long: Any = [{"role": "user", "content": "x" * 200}]
                with pytest.raises(
                    anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 128 maximum"
                ):
                    client.messages.create(model="paris", max_tokens=10, messages=long)

    def test_what_the_guard_tried_is_not_tried_again(
        self, serve: Serve, scripted: MakeModel, tiny: MakeModel
    ) -> None:
        models = {
            "sick": {"model": tiny(nan=True), "fallbacks": ["paris"], "retry": {"attempts": 1}},
            "paris": scripted(ANSWER),
        }
        running = serve(models=models)
        body = {"model": "sick", "max_tokens": 100, "messages": ASK}
        reply = running.client.post("/v1/messages", json=body)
        assert reply.status_code == 502 and reply.headers["x-should-retry"] == "false"
        error = reply.json()["error"]
        assert (error["type"], error["code"]) == ("api_error", "fallback_refused")
        assert error["answer"]["text"] == ANSWER and error["guard"]["fallback"]

    def test_in_a_stream(self, serve: Serve, tiny: MakeModel) -> None:
        model = {"model": tiny(nan=True), "retry": {"attempts": 1}}
        running = serve(models={"sick": model}, early_errors=0, heartbeat=0.02)
        body = {"model": "sick", "max_tokens": 100, "messages": ASK}
        found = [pair for pair in events_of(running, body) if pair[0] != "ping"]
        assert [name for name, _ in found] == ["message_start", "error"]
        assert found[-1][1]["error"]["type"] == "api_error"
        with (
            client_of(running) as client,
            pytest.raises(anthropic.APIStatusError),
            client.messages.stream(**body) as stream,
        ):
            stream.get_final_message()


def test_who_waits_is_pinged(serve: Serve, tiny: MakeModel) -> None:
    running = serve(models={"slow": tiny(), "other": tiny(seed=1)}, early_errors=0, heartbeat=0.02)
    held = running.backend.stream("other", "Hello", max_tokens=1500)
    next(held)
    body = {"model": "slow", "max_tokens": 4, "messages": ASK, "stream": True}
    with running.client.stream("POST", "/v1/messages", json=body) as reply:
        lines = reply.iter_lines()
        for line in lines:
            if line.startswith(":"):
                break
        assert "slow" in line
        assert [next(lines), next(lines)] == ["event: ping", 'data: {"type":"ping"}']
        held.close()
        assert "event: message_stop" in list(lines)


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_frees_the_place(serve: Serve, tiny: MakeModel, stream: bool) -> None:
    running = serve(models={"noise": tiny(context_window=100_000)})
    body = {"model": "noise", "max_tokens": 90_000, "messages": ASK, "stream": stream}
    with httpx.Client(base_url=running.url, timeout=60) as client:
        if stream:
            with client.stream("POST", "/v1/messages", json=body) as reply:
                next(reply.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/messages", json=body, timeout=1)
    ended = ("request.finished", "request.failed")
    until(lambda: any(event.kind in ended for event in running.backend.events()))
    assert sum(model.active for model in running.backend.models()) == 0


def test_the_models(client: anthropic.Anthropic) -> None:
    page = client.models.list()
    assert [model.id for model in page] == ["paris"]
    assert not page.has_more and page.data[0].display_name == "paris"
    assert page.data[0].max_input_tokens == 2048 and page.data[0].type == "model"
    assert client.models.retrieve("paris").created_at.year >= 2024


def test_hello(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"paris": scripted(ANSWER)}, keys={"a": {"key": "k"}})
    reply = running.client.head("/api/hello")
    assert reply.status_code == 200 and reply.content == b""
