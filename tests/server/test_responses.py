"""`/v1/responses`, through OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from mlx_guarded_llm.server.conversations import Conversations
from mlx_guarded_llm.server.openai.responses.prompt import as_messages, sealed
from tests.conftest import MakeModel

from ._asking import CALL, DIGITS, THOUGHT, Digit, named_events, openai_client
from ._asking import QUESTION as ASK
from ._wait import until
from .conftest import ANSWER, Running, Serve

ADD: Any = {
    "type": "function",
    "name": "add",
    "description": "Adds two digits.",
    "strict": True,
    "parameters": DIGITS,
}


def client_of(running: Running, **options: Any) -> openai.OpenAI:
    return openai_client(running, max_retries=0, **options)


@pytest.fixture
def client(paris: Running) -> Iterator[openai.OpenAI]:
    with client_of(paris) as client:
        yield client


def events_of(running: Running, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, which are numbered."""
    found = named_events(running, "/v1/responses", body)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def kinds_of(events: list[dict[str, Any]]) -> list[str]:
    """Their kinds without the prefix, neighbours of one kind once."""
    kinds = [event["type"].removeprefix("response.") for event in events]
    return [k for i, k in enumerate(kinds) if i == 0 or kinds[i - 1] != k]


def test_a_whole_answer(client: openai.OpenAI) -> None:
    raw = client.responses.with_raw_response.create(model="paris", input=ASK)
    response = raw.parse()
    assert response.output_text == ANSWER
    assert (response.status, response.object, response.model) == ("completed", "response", "paris")
    [message] = response.output
    assert message.type == "message" and message.status == "completed" and message.id
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    guard = response.model_dump()["guard"]
    assert guard["request_id"] == response.id == raw.headers["x-guard-request-id"]


def test_the_events_of_a_stream(paris: Running) -> None:
    events = events_of(paris, model="paris", input=ASK)
    assert kinds_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    deltas = [event["delta"] for event in events if event["type"].endswith("text.delta")]
    assert "".join(deltas) == ANSWER and len(deltas) > 5
    last = events[-1]["response"]
    assert last["output"] == [events[-2]["item"]]
    assert last["output"][0]["content"][0]["text"] == ANSWER
    assert last["usage"]["output_tokens"] > 5 and last["guard"]["served_model"] == "paris"
    assert {event["response"]["id"] for event in events if "response" in event} == {last["id"]}


def test_the_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model="paris", input=ASK) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert final.output_text == ANSWER
    assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds


async def test_the_async_client(paris: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{paris.url}/v1", api_key="none") as client:
        response = await client.responses.create(model="paris", input=ASK)
        assert response.output_text == ANSWER
        stream = await client.responses.create(model="paris", input=ASK, stream=True)
        texts = [e.delta async for e in stream if e.type == "response.output_text.delta"]
        assert "".join(texts) == ANSWER


def test_an_answer_that_is_cut_off(client: openai.OpenAI, paris: Running) -> None:
    cut = client.responses.create(model="paris", input=ASK, max_output_tokens=4)
    assert cut.status == "incomplete" and cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert cut.output[0].status == "incomplete"  # type: ignore[union-attr]
    last = events_of(paris, model="paris", input=ASK, max_output_tokens=4)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("choice", ["auto", {"type": "function", "name": "add"}])
def test_tools(serve: Serve, scripted: MakeModel, choice: Any) -> None:
    running = serve(models={"caller": scripted(CALL, tools=True)})
    with client_of(running) as client:
        options: Any = {"model": "caller", "tools": [ADD], "tool_choice": choice}
        response = client.responses.create(**options, input=ASK, store=False)
        [call] = response.output
        assert call.type == "function_call" and call.name == "add"
        assert json.loads(call.arguments) == {"a": 3, "b": 4}
        events = events_of(running, **options, input=ASK)
        assert kinds_of(events)[2:] == [
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
        assert events[2]["item"]["arguments"] == "" and events[2]["item"]["call_id"]
        with client.responses.stream(**options, input=ASK) as stream:
            [streamed] = stream.get_final_response().output
        assert streamed.parsed_arguments == {"a": 3, "b": 4}  # type: ignore[union-attr]
        thread: Any = [
            {"role": "user", "content": ASK},
            call,
            {"type": "function_call_output", "call_id": call.call_id, "output": "7"},
        ]
        again = client.responses.create(
            model="caller", tools=[ADD], tool_choice="none", input=thread
        )
        assert again.output[0].type == "message"


def test_some_tools_are_allowed(serve: Serve, tiny: MakeModel) -> None:
    with client_of(serve(models={"noise": tiny()})) as client:
        only = [{"type": "function", "name": "add"}]
        options: Any = {
            "tools": [ADD, {**ADD, "name": "subtract"}],
            "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": only},
            "parallel_tool_calls": False,
        }
        response = client.responses.create(model="noise", input=ASK, **options)
        assert [item.name for item in response.output] == ["add"]


def test_tools_of_other_kinds_are_left_out_and_told_of(client: openai.OpenAI) -> None:
    others: Any = [
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        {"type": "namespace", "name": "mcp", "tools": [ADD]},
        {"type": "web_search", "external_web_access": False},
    ]
    raw = client.responses.with_raw_response.create(model="paris", input=ASK, tools=others)
    left_out = ["tools.custom.apply_patch", "tools.namespace.mcp", "tools.web_search"]
    assert raw.parse().output_text == ANSWER
    assert raw.parse().model_dump()["left_out"] == left_out
    assert raw.headers["x-guard-left-out"] == ", ".join(left_out)


@pytest.mark.parametrize("summary", [None, "auto"])
def test_thinking(serve: Serve, scripted: MakeModel, summary: Any) -> None:
    running = serve(models={"thinker": scripted(THOUGHT, thinking=True)})
    reasoning: Any = {"effort": "low", "summary": summary}
    with client_of(running) as client:
        response = client.responses.create(
            model="thinker",
            input=ASK,
            reasoning=reasoning,
            include=["reasoning.encrypted_content"],
        )
        thinking, message = response.output
        assert thinking.type == "reasoning" and message.type == "message"
        parts: Any = thinking.summary if summary else thinking.content
        assert parts[0].text.strip() == "Well." and response.output_text == "Paris."
        assert response.usage is not None
        thought = response.usage.output_tokens_details.reasoning_tokens
        assert 2 < thought < response.usage.output_tokens - 1
        thread: Any = [
            {"role": "user", "content": ASK},
            thinking,
            message,
            {"role": "user", "content": "Why?"},
        ]
        assert client.responses.create(model="thinker", input=thread).output_text == "Paris."
        with client.responses.stream(model="thinker", input=ASK, reasoning=reasoning) as stream:
            assert stream.get_final_response().output_text == "Paris."
    kinds = kinds_of(events_of(running, model="thinker", input=ASK, reasoning=reasoning))
    text, part = ("reasoning_summary_text", "reasoning_summary_part") if summary else (
        "reasoning_text", "content_part",
    )  # fmt: skip
    assert kinds[2:8] == [
        "output_item.added",
        f"{part}.added",
        f"{text}.delta",
        f"{text}.done",
        f"{part}.done",
        "output_item.done",
    ]


def test_an_effort_of_who_does_not_reason(client: openai.OpenAI) -> None:
    response = client.responses.create(model="paris", input=ASK, reasoning={"effort": "low"})
    assert response.output_text == ANSWER
    assert response.model_dump()["left_out"] == ["reasoning.effort"]


def test_parse_makes_an_object(serve: Serve, tiny: MakeModel) -> None:
    with client_of(serve(models={"noise": tiny()})) as client:
        response = client.responses.parse(model="noise", input=ASK, text_format=Digit)
        assert isinstance(response.output_parsed, Digit)


class TestConversations:
    def test_one_goes_on_by_its_name(self, client: openai.OpenAI) -> None:
        first = client.responses.create(model="paris", input=ASK, instructions="Be brief.")
        with client.responses.stream(
            model="paris", input="Sure?", previous_response_id=first.id
        ) as stream:
            second = stream.get_final_response()
        third = client.responses.create(
            model="paris", input="Really?", previous_response_id=second.id
        )
        said: Any = [{"role": "user", "content": ASK}, *first.output]
        said += [{"role": "user", "content": "Sure?"}, *second.output]
        said += [{"role": "user", "content": "Really?"}]
        whole = client.responses.create(model="paris", input=said)
        assert third.previous_response_id == second.id
        assert third.usage and whole.usage
        assert third.usage.input_tokens == whole.usage.input_tokens  # instructions do not stay
        referred: Any = [said[0], {"type": "item_reference", "id": first.output[0].id}, said[2]]
        same = client.responses.create(model="paris", input=referred)
        assert same.usage and second.usage and same.usage.input_tokens == second.usage.input_tokens

    def test_what_is_not_kept(self, client: openai.OpenAI) -> None:
        gone = client.responses.create(model="paris", input=ASK, store=False)
        for wrong, code in (
            ({"input": "Sure?", "previous_response_id": gone.id}, "previous_response_not_found"),
            ({"input": [{"type": "item_reference", "id": gone.output[0].id}]}, "item_not_found"),
        ):
            with pytest.raises(openai.BadRequestError) as raised:
                client.responses.create(model="paris", **wrong)
            assert raised.value.code == code

    def test_nobody_goes_on_with_another_s(self, serve: Serve, scripted: MakeModel) -> None:
        keys = {"alice": {"key": "a"}, "bob": {"key": "b"}}
        running = serve(models={"paris": scripted(ANSWER)}, keys=keys)
        with client_of(running, api_key="a") as alice, client_of(running, api_key="b") as bob:
            first = alice.responses.create(model="paris", input=ASK)
            with pytest.raises(openai.BadRequestError, match="no response"):
                bob.responses.create(model="paris", input="Hi", previous_response_id=first.id)
            acts: Any = bob.responses
            for act in (acts.retrieve, acts.delete, acts.input_items.list):
                with pytest.raises(openai.NotFoundError):
                    act(first.id)
            assert alice.responses.retrieve(first.id) == first

    def test_it_can_be_asked_for_and_forgotten(self, client: openai.OpenAI) -> None:
        items: Any = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": ASK},
        ]
        first = client.responses.create(model="paris", input=items)
        assert client.responses.retrieve(first.id) == first
        with client.responses.stream(
            model="paris", input="Sure?", previous_response_id=first.id
        ) as stream:
            second = stream.get_final_response()
        kept = client.responses.retrieve(second.id)
        assert kept.output_text == ANSWER and kept.usage == second.usage
        asked: list[Any] = list(client.responses.input_items.list(second.id, limit=3))
        assert [item.role for item in asked] == ["user", "assistant", "user", "developer"]
        assert [item.content[0].text for item in asked] == ["Sure?", ANSWER, ASK, "Be brief."]
        page = client.responses.input_items.list(
            second.id, order="asc", limit=1, after=asked[-1].id
        )
        assert page.data == [asked[2]] and page.has_more
        referred: Any = [{"type": "item_reference", "id": asked[2].id}]
        same = client.responses.create(model="paris", input=referred)
        alone = client.responses.create(model="paris", input=ASK)
        assert same.usage and alone.usage and same.usage.input_tokens == alone.usage.input_tokens
        client.responses.delete(first.id)
        for name, act in (
            (first.id, client.responses.retrieve),
            (first.id, client.responses.delete),
            ("resp-of-nobody", client.responses.input_items.list),
        ):
            with pytest.raises(openai.NotFoundError) as raised:
                act(name)
            assert raised.value.code == "response_not_found"
        with pytest.raises(openai.BadRequestError, match="no response"):
            client.responses.create(model="paris", input="Hi", previous_response_id=first.id)
        assert client.responses.retrieve(second.id) == kept
        third = client.responses.create(
            model="paris", input="Really?", previous_response_id=second.id
        )
        assert len(list(client.responses.input_items.list(third.id))) == 6

    def test_what_cannot_be_asked_of_it(self, client: openai.OpenAI) -> None:
        first = client.responses.create(model="paris", input=ASK)
        for wrong, param in (
            ({"limit": 101}, "limit"),
            ({"after": "nothing"}, "after"),
            ({"extra_query": {"junk": 1}}, "junk"),
        ):
            with pytest.raises(openai.BadRequestError) as raised:
                client.responses.input_items.list(first.id, **wrong)
            assert raised.value.param == param
        with pytest.raises(openai.BadRequestError, match="not streamed"):
            client.responses.retrieve(first.id, stream=True)

    def test_the_oldest_make_room(self) -> None:
        kept = Conversations(most_bytes=300)

        def keep(name: str, text: str, earlier: str = "") -> None:
            response = {"id": name, "output": [{"id": f"answer {name}"}]}
            kept.keep("", kept.find(earlier, ""), [{"id": f"ask {name}", "text": text}], response)

        keep("one", "x" * 20)
        keep("two", "", "one")
        keep("three", "x" * 20)
        assert kept.find("one", "") is None and kept.item("ask one", "") is None
        two = kept.find("two", "")
        assert two is not None
        assert [item["id"] for item in two.asked] == ["ask one", "answer one", "ask two"]
        assert two.items[-1]["id"] == "answer two"
        keep("large", "x" * 400)
        assert kept.find("three", "") is None and kept.find("large", "") is None


def test_what_the_model_reads() -> None:
    items: Any = [
        {"role": "developer", "content": "One."},
        {"role": "system", "content": [{"type": "input_text", "text": "Two."}]},
        {"role": "user", "content": [{"type": "input_text", "text": t} for t in "ab"]},
        {"type": "reasoning", "summary": [], "encrypted_content": sealed("Hm.")},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I."}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x": 1}'},
        {"type": "custom_tool_call", "call_id": "2", "name": "g", "input": "patch"},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
        {"type": "custom_tool_call_output", "call_id": "2",
         "output": [{"type": "input_text", "text": "two"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]},
        {"role": "developer", "content": "Three."},
        {"type": "reasoning", "summary": [], "encrypted_content": "of another server"},
        {"type": "function_call", "call_id": "3", "name": "f", "arguments": ""},
    ]  # fmt: skip

    def call(name: str, function: str, arguments: Any) -> dict[str, Any]:
        return {
            "id": name,
            "type": "function",
            "function": {"name": function, "arguments": arguments},
        }

    assert as_messages("Zero.", items) == [
        {"role": "system", "content": "Zero.\n\nOne.\n\nTwo."},
        {"role": "user", "content": "a\n\nb"},
        {
            "role": "assistant",
            "content": "I.",
            "reasoning_content": "Hm.",
            "tool_calls": [call("1", "f", '{"x": 1}'), call("2", "g", {"input": "patch"})],
        },
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {
            "role": "tool",
            "tool_call_id": "2",
            "content": "two\n\n[an image, which this model cannot see]",
        },
        {"role": "system", "content": "Three."},
        {"role": "assistant", "content": "", "tool_calls": [call("3", "f", "{}")]},
    ]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": []}, ""),
        ({"input": [{"role": "wizard", "content": "Hi"}]}, "input.0.role"),
        ({"input": [{"type": "computer_call"}]}, "input.0"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0",
        ),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0.call_id"),
        ({"temperature": 1000}, ""),
        ({"tool_choice": "required"}, ""),
        ({"tool_choice": {"type": "web_search"}}, ""),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_it_cannot_do_is_refused_by_name(
    paris: Running, wrong: dict[str, Any], param: str, stream: bool
) -> None:
    body = {"model": "paris", "input": ASK, "stream": stream} | wrong
    reply = paris.client.post("/v1/responses", json=body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    if param:
        assert error["param"] == param


def test_bookkeeping_changes_nothing(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="paris", input=ASK, metadata={"a": "b"}, user="me", prompt_cache_key="k",
        service_tier="auto", truncation="auto", include=["reasoning.encrypted_content"],
        extra_body={"client_metadata": {"x": "y"}},
    )  # fmt: skip
    assert response.output_text == ANSWER and response.metadata == {"a": "b"}


def test_a_prompt_that_is_too_long(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"paris": scripted(ANSWER, context_window=64)})
    with client_of(running) as client, pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="paris", input="x" * 100)
    assert raised.value.code == "context_length_exceeded"
    last = events_of(running, model="paris", input="x" * 100)[-1]
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "context_length_exceeded"


def test_a_full_queue_says_when_to_try_again(serve: Serve, tiny: MakeModel) -> None:
    model = {"model": tiny(context_window=100_000), "retry": {"attempts": 1}}
    running = serve(models={"noise": model}, options={"max_queue": 1, "max_active": 1})
    streams = [running.backend.stream("noise", "Hi", max_tokens=90_000)]
    next(streams[0])
    streams.append(running.backend.stream("noise", "Hi"))
    until(lambda: sum(model.waiting for model in running.backend.models()) == 1)
    last = events_of(running, model="noise", input=ASK)[-1]
    error = last["response"]["error"]
    assert last["type"] == "response.failed" and error["code"] == "rate_limit_exceeded"
    assert "try again in 5s" in error["message"] and error["cause"] == "queue_full"
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("early_errors", [0, 2])
def test_what_the_guard_tried_codex_does_not_try_again(
    serve: Serve, tiny: MakeModel, scripted: MakeModel, early_errors: float
) -> None:
    sick = {"model": tiny(nan=True), "retry": {"attempts": 1}}
    running = serve(
        models={
            "sick": sick,
            "fragile": {**sick, "fallbacks": ["paris"]},
            "paris": scripted(ANSWER),
        },
        early_errors=early_errors,
    )
    for model, cause in (("sick", "generation_failed"), ("fragile", "fallback_refused")):
        last = events_of(running, model=model, input=ASK)[-1]
        assert last["type"] == "response.failed"
        error = last["response"]["error"]
        assert (error["code"], error["cause"]) == ("invalid_prompt", cause)
        assert last["response"]["guard"]["attempts"] and last["response"]["output"] == []
    assert error["answer"]["text"] == ANSWER


def test_the_image_of_a_tool_is_told_in_words(paris: Running) -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    items = [
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [image]},
    ]
    reply = paris.client.post("/v1/responses", json={"model": "paris", "input": items})
    assert reply.json()["left_out"] == ["input.1.output.0"]
    items = [{"role": "user", "content": [image]}]
    reply = paris.client.post("/v1/responses", json={"model": "paris", "input": items})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "input.0.content.0"


def test_who_waits_gets_events(serve: Serve, tiny: MakeModel) -> None:
    running = serve(models={"slow": tiny(), "other": tiny(seed=1)}, early_errors=0, heartbeat=0.02)
    held = running.backend.stream("other", "Hello", max_tokens=1500)
    next(held)
    body = {"model": "slow", "max_output_tokens": 4, "input": ASK, "stream": True}
    with running.client.stream("POST", "/v1/responses", json=body) as reply:
        lines = reply.iter_lines()
        assert "slow" in next(line for line in lines if line.startswith(":"))
        assert next(lines) == "event: response.in_progress"
        held.close()
        assert "event: response.incomplete" in list(lines)


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_frees_the_place(serve: Serve, tiny: MakeModel, stream: bool) -> None:
    running = serve(models={"noise": tiny(context_window=100_000)})
    body = {"model": "noise", "max_output_tokens": 90_000, "input": ASK, "stream": stream}
    with httpx.Client(base_url=running.url, timeout=60) as client:
        if stream:
            with client.stream("POST", "/v1/responses", json=body) as reply:
                lines = reply.iter_lines()
                next(line for line in lines if "output_text.delta" in line)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/responses", json=body, timeout=1)
    ended = ("request.finished", "request.failed")
    until(lambda: any(event.kind in ended for event in running.backend.events()))
    assert sum(model.active for model in running.backend.models()) == 0
