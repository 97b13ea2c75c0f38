"""Models behind a real HTTP server that answers well, badly, half, or not at all."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from mlx_guarded_llm import GuardedLLM, OpenAIModel, RetryPolicy
from mlx_guarded_llm.errors import (
    AttemptsExhausted,
    ContextOverflow,
    DeadlineExceeded,
    GuardedLLMError,
    InvalidRequest,
    ModelNotFound,
    ModelUnsupported,
    QueueFull,
    RequestCancelled,
    RequestTimeout,
    ServerRefused,
    ServerUnavailable,
)
from mlx_guarded_llm.fallback import Call
from mlx_guarded_llm.results import Usage
from mlx_guarded_llm.testing.faulty import FaultyBackend
from tests._upstream import KEY, WORDS, Upstream

from ..conftest import SOON, WAYS, Ask

TEXT = "".join(WORDS)
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
PAIR = ADD["function"]["parameters"]
ONCE = RetryPolicy(attempts=1)


@pytest.fixture(params=list(WAYS))
def ask(request: pytest.FixtureRequest) -> Ask:
    return WAYS[request.param]


def model(server: Upstream, which: str, **options: Any) -> OpenAIModel:
    return OpenAIModel(url=server.url, model=which, **options)


def llm(server: Upstream, name: str, **options: Any) -> GuardedLLM:
    given: dict[str, Any] = {"retry": ONCE} | options
    return GuardedLLM(None, model(server, name), **given)


def test_an_answer(server: Upstream, ask: Ask) -> None:
    far = GuardedLLM(None, model(server, "good", key=KEY, name="far"))
    options: dict[str, Any] = {"top_k": 4, "thinking_budget": 0}
    result = ask(far, "Where?", max_tokens=9, temperature=0.0, seed=2**40 + 3, **options)
    assert result.text == TEXT and result.usage == Usage(7, 5)
    guard = result.guard
    assert guard.as_asked and guard.requested_model == guard.served_model == "far"
    assert guard.sampling == {"temperature": 0.0, "top_k": 4} and guard.seed == 3
    assert [attempt.outcome for attempt in guard.attempts] == ["ok"]
    [body] = server.bodies
    assert body["messages"] == [{"role": "user", "content": "Where?"}]
    assert (body["max_tokens"], body["temperature"], body["seed"], body["top_k"]) == (9, 0, 3, 4)
    assert body["thinking_budget"] == 0
    assert server.keys == [f"Bearer {KEY}"] and server.paths == ["/v1/chat/completions"]


def test_no_key_of_the_environment_is_sent(
    server: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    llm(server, "good").generate("Where?")
    assert KEY not in server.keys[0]


def test_pieces_come_as_they_are_said(server: Upstream) -> None:
    with llm(server, "good").stream("Where?") as stream:
        chunks = list(stream)
    assert [chunk.text for chunk in chunks] == [*WORDS, ""]
    assert [chunk.finish_reason for chunk in chunks] == [None, None, None, "stop"]


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("401", ServerRefused, "status 401"),
        ("403", ServerRefused, "status 403"),
        ("404", ModelNotFound, "status 404"),
        ("400", ServerRefused, "status 400"),
        ("429", QueueFull, "status 429"),
        ("500", ServerUnavailable, "status 500"),
        ("503", ServerUnavailable, "status 503"),
        ("final", ServerRefused, "an answer was refused"),
        ("moved", ServerRefused, "status 307"),
        ("long", ContextOverflow, "8,192"),
        ("page", ServerUnavailable, "without a finish reason"),
        ("cut", ServerUnavailable, "characters of it|does not answer"),
        ("no end", ServerUnavailable, "without a finish reason"),
        ("no json", ServerUnavailable, "cannot be read"),
        ("strange", ServerUnavailable, "none of a chat completion"),
        ("failing", ServerUnavailable, "the model fell over"),
    ],
)
def test_what_goes_wrong(
    server: Upstream, name: str, kind: type[GuardedLLMError], said: str
) -> None:
    far = model(server, name, key=KEY)
    for way in (far.generate, lambda call: list(far.stream(call))):
        with pytest.raises(kind, match=said) as raised:
            way(Call(prompt="Where?"))
        assert type(raised.value) is kind and KEY not in str(raised.value)
        assert raised.value.retryable == (kind in (ServerUnavailable, QueueFull))
        assert raised.value.fallback
    assert "/elsewhere" not in server.paths


def test_what_is_known_of_a_prompt_that_is_too_long(server: Upstream) -> None:
    with pytest.raises(ContextOverflow) as raised:
        llm(server, "long").generate("Where?")
    assert (raised.value.context_window, raised.value.prompt_tokens) == (8192, 9001)


@pytest.mark.parametrize("name", ["cut", "no end", "hang half-way", "no json", "failing"])
def test_half_an_answer_is_never_a_whole_one(server: Upstream, ask: Ask, name: str) -> None:
    policy = RetryPolicy(attempts=2, initial_wait=0, jitter=0, deadline=60)
    far = GuardedLLM(
        None,
        model(server, name, read_timeout=0.3),
        retry=policy,
        on_degraded="mark",
        on_fallback="mark",
    )
    with pytest.raises(AttemptsExhausted):
        ask(far, "Where?")


def test_nobody_is_there(ask: Ask) -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        far = GuardedLLM(None, OpenAIModel(url=url, model="m"), retry=ONCE)
        with pytest.raises(ServerUnavailable, match="does not answer"):
            ask(far, "Where?")


def test_the_deadline_of_a_request(server: Upstream, ask: Ask) -> None:
    with pytest.raises((RequestTimeout, DeadlineExceeded)):
        ask(llm(server, "hang"), "Where?", timeout=0.3)
    assert not server.asked.is_set() or server.gone.wait(60)


def test_silence(server: Upstream, ask: Ask) -> None:
    far = GuardedLLM(None, model(server, "hang", read_timeout=0.3), retry=ONCE)
    with pytest.raises(ServerUnavailable, match="said nothing"):
        ask(far, "Where?")
    assert not server.asked.is_set() or server.gone.wait(60)


def test_it_is_asked_again(server: Upstream, ask: Ask) -> None:
    result = ask(llm(server, "flaky", retry=SOON), "Where?")
    assert result.text == TEXT and result.guard.as_asked
    assert [attempt.outcome for attempt in result.guard.attempts] == ["error", "error", "ok"]


def test_what_will_not_pass_is_asked_once(server: Upstream) -> None:
    for name in ("401", "final"):
        with pytest.raises(ServerRefused):
            llm(server, name, retry=SOON).generate("Where?")
    assert len(server.bodies) == 2


def test_a_stream_that_is_left(server: Upstream) -> None:
    with llm(server, "hang half-way").stream("Where?") as stream:
        assert next(stream).text == WORDS[0]
    assert server.gone.wait(60)


async def test_a_task_that_is_cancelled(server: Upstream) -> None:
    task = asyncio.create_task(llm(server, "hang").agenerate("Where?"))
    await asyncio.to_thread(server.asked.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.gone.wait, 60)


@pytest.mark.parametrize(("name", "text"), [("hang", ""), ("hang half-way", WORDS[0])])
def test_it_is_cancelled_by_its_id(server: Upstream, name: str, text: str) -> None:
    far = llm(server, name, on_degraded="mark")
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(far.generate("Where?", request_id="mine"))
        except GuardedLLMError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not server.bodies:
        thread.join(0.01)
    if text:  # it has come; whether it was read yet is no matter to the server
        thread.join(0.3)
    far.cancel("mine")
    thread.join(60)
    assert server.gone.wait(60)
    [end] = found
    if isinstance(end, GuardedLLMError):
        assert isinstance(end, RequestCancelled)
    else:
        assert end.text == text and end.finish_reason == "cancelled"


def test_thinking_under_both_names(server: Upstream, ask: Ask) -> None:
    result = ask(llm(server, "thinking"), "Where?", thinking=True)
    assert (result.reasoning, result.text) == ("Well. Well. ", "Paris.")
    assert "reasoning_effort" not in server.bodies[0]
    llm(server, "thinking").generate("Where?", thinking=False)
    llm(server, "thinking").generate("Where?", template_kwargs={"reasoning_effort": "low"})
    assert [body["reasoning_effort"] for body in server.bodies[1:]] == ["none", "low"]


def test_tool_calls_are_put_together(server: Upstream, ask: Ask) -> None:
    result = ask(llm(server, "calling", on_degraded="mark"), "Add", tools=[ADD])
    assert [(call.id, call.arguments) for call in result.tool_calls] == [
        ("call-a", {"a": 3, "b": 4}),
        ("call-b", {"a": 1, "b": 2}),
    ]
    [half] = result.invalid_tool_calls
    assert "not JSON" in half.error and result.finish_reason == "tool_calls"
    assert result.guard.degraded == ("tool_call",)


def test_whole_calls_of_one_index_or_none(server: Upstream, ask: Ask) -> None:
    result = ask(llm(server, "calling at once"), "Add", tools=[ADD])
    assert [call.id for call in result.tool_calls] == ["call-a", "call-b", "call-c"]
    assert result.guard.as_asked


def test_a_call_that_was_cut_off_is_none(server: Upstream, ask: Ask) -> None:
    result = ask(llm(server, "half a call", on_degraded="mark"), "Add", tools=[ADD])
    assert not result.tool_calls and "cut off" in result.invalid_tool_calls[0].error
    assert result.guard.degraded


def test_tools_and_earlier_calls_are_sent(server: Upstream) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "clock.now", "arguments": {}}}
    clock = {"type": "function", "function": {"name": "clock.now", "parameters": PAIR}}
    llm(server, "good").generate(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "When?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "?"},
            {"role": "tool", "tool_call_id": "c1", "content": "Noon."},
        ],
        tools=[clock],
        parallel_tool_calls=False,
    )
    [body] = server.bodies
    system, user, assistant, tool = body["messages"]
    assert (system["role"], user["content"], tool["tool_call_id"]) == ("system", "When?", "c1")
    function = {"name": "clock_now", "arguments": "{}"}
    assert assistant["tool_calls"] == [{"id": "c1", "type": "function", "function": function}]
    assert "reasoning_content" not in assistant
    assert body["tools"][0]["function"]["name"] == "clock_now"
    assert body["parallel_tool_calls"] is False


def test_stop_strings_hold_whatever_the_server_does(server: Upstream, ask: Ask) -> None:
    stops = ["1", "2", "3", "4", "France"]
    result = ask(llm(server, "good"), "Where?", stop=stops)
    assert result.text == "The capital of " and result.finish_reason == "stop"
    assert result.stop_string == "France" and server.bodies[0]["stop"] == stops[:4]


def test_json_in_a_fence(server: Upstream, ask: Ask) -> None:
    result = ask(llm(server, "fenced"), "Two", schema=PAIR)
    assert result.text == '{"a": 1, "b": 2}' and result.guard.as_asked
    assert server.bodies[0]["response_format"]["json_schema"]["schema"] == PAIR


def test_a_form_beside_tools_or_unknown_is_asked_for_in_words(server: Upstream) -> None:
    far = llm(server, "good", on_degraded="mark")
    far.generate("Two", schema=PAIR, tools=[ADD])
    refusing = llm(server, "refuses response_format", on_degraded="mark")
    refusing.generate("Two", schema=PAIR)
    beside, _, without = server.bodies
    for body in (beside, without):
        assert "response_format" not in body
        assert "JSON Schema" in body["messages"][0]["content"]


def test_log_probabilities(server: Upstream, ask: Ask) -> None:
    result = ask(llm(server, "likely"), "Where?", logprobs=True, top_logprobs=1)
    [token] = result.logprobs
    assert (token.token, token.text, token.logprob) == (-1, "Paris", -0.5)
    assert token.top == ((-1, "P", -1.0),)
    assert server.bodies[0]["logprobs"] is True and server.bodies[0]["top_logprobs"] == 1


def test_settings_that_it_refuses_are_left_out(server: Upstream, ask: Ask) -> None:
    names = "max_tokens stop seed temperature top_k stream_options"
    far = llm(server, f"refuses {names}")
    asked: dict[str, Any] = {"max_tokens": 9, "stop": "zzz", "seed": 1, "temperature": 0.5}
    result = ask(far, "Where?", top_k=3, top_p=0.5, **asked)
    assert result.text == TEXT and result.guard.sampling == {"top_p": 0.5}
    before = len(server.bodies)
    ask(far, "Where?", top_k=3, **asked)
    assert len(server.bodies) == before + 1
    assert server.bodies[-1]["max_completion_tokens"] == 9


@pytest.mark.parametrize(
    "option",
    [
        {"regex": "a+"},
        {"grammar": "start: 'a'"},
        {"raw": True},
        {"logit_bias": {1: 2.0}},
        {"penalty_window": 9},
        {"template_kwargs": {"mood": "glad"}},
    ],
)
def test_what_it_cannot_be_asked_is_refused_by_name(
    server: Upstream, option: dict[str, Any]
) -> None:
    name = "mood" if "template_kwargs" in option else next(iter(option))
    with pytest.raises(ModelUnsupported, match=name):
        llm(server, "good").generate("Where?", **option)
    assert not server.bodies


def test_as_a_fallback_and_with_one(server: Upstream, ask: Ask) -> None:
    gone = [ServerUnavailable("gone.")] * 3
    local: Any = FaultyBackend(faults={"big": gone}, answers={"big": "x"})
    result = ask(
        GuardedLLM(local, "big", fallbacks=[model(server, "good")], retry=SOON, on_fallback="mark"),
        "Where?",
    )
    assert result.text == TEXT and result.guard.fallback
    assert (result.guard.requested_model, result.guard.served_model) == ("big", "good")
    far = GuardedLLM(
        FaultyBackend(faults={}, answers={"small": "Here."}),  # type: ignore[arg-type]
        model(server, "500"),
        fallbacks=["small"],
        retry=SOON,
        on_fallback="mark",
    )
    result = ask(far, "Where?")
    assert result.text == "Here." and result.guard.fallback
    assert [attempt.model for attempt in result.guard.attempts] == ["500"] * 3 + ["small"]


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080",
        "file:///etc/passwd",
        "http://",
        "http://me:secret@h/v1",
        "http://h/v1?key=1",
        "http://h:x/v1",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InvalidRequest, match="url") as raised:
        OpenAIModel(url=url, model="m")
    assert "secret" not in str(raised.value)


def test_what_it_shows_of_itself_is_without_its_key(server: Upstream) -> None:
    assert KEY not in repr(model(server, "good", key=KEY))


def test_without_the_client(server: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(InvalidRequest, match=r"mlx-guarded-llm\[openai\]"):
        model(server, "good")
