"""The chat model on a real backend with small models."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
from langchain_core import exceptions as theirs
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd, load
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    trim_messages,
)
from pydantic import SecretStr, ValidationError

from langchain_mlx_guarded import ChatMLXGuarded
from mlx_guarded_llm import Backend, BaseBackend, Provenance, RetryPolicy
from mlx_guarded_llm.errors import InvalidRequest, ModelNotFound
from tests.conftest import MakeModel

PARIS = "The capital is Paris."
THOUGHTFUL = f"<think>France, so</think>{PARIS}"


@pytest.fixture
def thinker(scripted: MakeModel) -> str:
    return scripted(THOUGHTFUL, thinking=True)


@pytest.fixture
def chat(backend: Backend, thinker: str) -> ChatMLXGuarded:
    return ChatMLXGuarded(model=thinker, backend=backend)


async def way_invoke(chat: Any, *args: Any, **kwargs: Any) -> AIMessage:
    message: AIMessage = chat.invoke(*args, **kwargs)
    return message


async def way_ainvoke(chat: Any, *args: Any, **kwargs: Any) -> AIMessage:
    message: AIMessage = await chat.ainvoke(*args, **kwargs)
    return message


async def way_stream(chat: Any, *args: Any, **kwargs: Any) -> AIMessage:
    message: AIMessage = reduce(lambda a, b: a + b, chat.stream(*args, **kwargs))
    return message


async def way_astream(chat: Any, *args: Any, **kwargs: Any) -> AIMessage:
    chunks = [chunk async for chunk in chat.astream(*args, **kwargs)]
    message: AIMessage = reduce(lambda a, b: a + b, chunks)
    return message


WAYS = [way_invoke, way_ainvoke, way_stream, way_astream]
each_way = pytest.mark.parametrize("ask", WAYS)


@each_way
async def test_an_answer_is_the_same_whichever_way(ask: Any, chat: ChatMLXGuarded) -> None:
    message = await ask(chat, "The capital of France?")
    assert message.content == PARIS
    assert message.additional_kwargs == {"reasoning_content": "France, so"}
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
    metadata = message.response_metadata
    assert metadata["model_name"] == chat.model_name
    assert metadata["model_provider"] == "mlx_guarded"
    assert metadata["finish_reason"] == "stop"
    guard = Provenance.from_dict(metadata["guard"])
    assert guard.as_asked
    assert guard.served_model == chat.model_name
    assert len(guard.attempts) == 1
    usage = message.usage_metadata
    assert usage["output_tokens"] > 5
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


@each_way
async def test_the_second_time_the_prompt_is_found_in_the_cache(
    ask: Any, chat: ChatMLXGuarded
) -> None:
    first, second = [await ask(chat, "The capital of France?") for _ in range(2)]
    assert first.usage_metadata["input_token_details"]["cache_read"] == 0
    assert second.usage_metadata["input_token_details"]["cache_read"] > 0


def test_a_stream_ends_with_one_chunk_that_tells_all(chat: ChatMLXGuarded) -> None:
    chunks = list(chat.stream("Hi"))
    assert len(chunks) > 5
    assert [c.chunk_position for c in chunks if c.chunk_position] == ["last"]
    assert [bool(c.response_metadata) for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert [bool(c.usage_metadata) for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)


@pytest.mark.parametrize("streamed", [False, True])
async def test_standard_blocks_can_be_kept_in_the_content(
    backend: Backend, thinker: str, streamed: bool
) -> None:
    chat = ChatMLXGuarded(model=thinker, backend=backend, output_version="v1")
    message = await (way_stream if streamed else way_invoke)(chat, "Hi")
    assert isinstance(message.content, list)
    blocks: list[Any] = message.content
    kinds = [(b["type"], b.get("reasoning") or b.get("text")) for b in blocks]
    assert kinds == [("reasoning", "France, so"), ("text", PARIS)]
    again = chat.invoke([HumanMessage("Hi"), message, HumanMessage("Again")])
    assert again.text == PARIS


@each_way
async def test_logprobs_come_when_asked_for(ask: Any, chat: ChatMLXGuarded) -> None:
    message = await ask(chat, "Hi", logprobs=True, top_logprobs=2)
    content = message.response_metadata["logprobs"]["content"]
    assert len(content) == message.usage_metadata["output_tokens"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    plain = await ask(chat, "Hi")
    assert "logprobs" not in plain.response_metadata


@each_way
async def test_a_call_beats_the_constructor(ask: Any, backend: Backend, thinker: str) -> None:
    chat = ChatMLXGuarded(model=thinker, backend=backend, stop_sequences=["Paris"], seed=3)
    assert (await ask(chat, "Hi")).content == "The capital is "
    assert (await ask(chat, "Hi", stop=["capital"])).content == "The "
    assert (await ask(chat, "Hi", stop=[])).content == PARIS
    assert (await ask(chat.bind(stop=["is"]), "Hi")).content == "The capital "
    guards = [
        (await ask(chat, "Hi", **options)).response_metadata["guard"]
        for options in ({}, {"seed": 4}, {"seed": None})
    ]
    assert [guard["seed"] for guard in guards] == [3, 4, 3]


@each_way
async def test_a_call_may_ask_another_model(
    ask: Any, chat: ChatMLXGuarded, scripted: MakeModel
) -> None:
    other = scripted("Something else.")
    message = await ask(chat, "Hi", model=other)
    assert message.content == "Something else."
    assert message.response_metadata["model_name"] == other
    assert message.response_metadata["guard"]["requested_model"] == other


@each_way
async def test_max_tokens_of_the_caller_cuts_and_says_so(ask: Any, chat: ChatMLXGuarded) -> None:
    message = await ask(chat, "Hi", max_tokens=7)
    assert message.usage_metadata["output_tokens"] == 7
    assert message.response_metadata["finish_reason"] == "length"
    guard = message.response_metadata["guard"]
    assert guard["capped"] and guard["degraded"] == []


@each_way
async def test_the_answer_can_be_held_to_a_form(
    ask: Any, backend: Backend, tiny: MakeModel
) -> None:
    chat = ChatMLXGuarded(model=tiny(), backend=backend, max_tokens=40)
    assert (await ask(chat, "Hi", regex="(yes|no)")).content in ("yes", "no")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    assert (await ask(chat, "Hi", schema=schema)).content in ('{"ok": true}', '{"ok": false}')


@each_way
async def test_thinking_can_be_switched_off_for_a_call(ask: Any, chat: ChatMLXGuarded) -> None:
    thought = await ask(chat, "Hi", thinking=True)
    unasked = await ask(chat, "Hi", thinking=False)
    more = unasked.usage_metadata["input_tokens"] - thought.usage_metadata["input_tokens"]
    assert more > 0  # the template closed the thinking in the prompt


@each_way
async def test_an_unknown_option_is_an_error(ask: Any, chat: ChatMLXGuarded) -> None:
    with pytest.raises(InvalidRequest, match="temprature") as caught:
        await ask(chat, "Hi", temprature=1)
    assert isinstance(caught.value, theirs.ModelInvalidRequestError)


@each_way
async def test_an_unknown_model_is_an_error_of_both_libraries(ask: Any, backend: Backend) -> None:
    chat = ChatMLXGuarded(model="no-such-model", backend=backend)
    with pytest.raises(theirs.ModelNotFoundError) as caught:
        await ask(chat, "Hi")
    assert isinstance(caught.value, ModelNotFound)
    assert not caught.value.is_retryable
    assert caught.value.guard is not None
    assert len(caught.value.guard.attempts) == 1


@each_way
async def test_a_prompt_that_is_too_long_is_langchains_own_error(
    ask: Any, backend: Backend, scripted: MakeModel
) -> None:
    chat = ChatMLXGuarded(model=scripted("Yes.", context_window=64), backend=backend)
    with pytest.raises(theirs.ContextOverflowError) as caught:
        await ask(chat, "x" * 100)
    assert caught.value.context_window == 64  # type: ignore[attr-defined]


@each_way
async def test_a_whole_conversation_is_taken(ask: Any, chat: ChatMLXGuarded) -> None:
    first = await ask(chat, [SystemMessage("Be brief."), HumanMessage("Hi"), HumanMessage("You?")])
    history = [HumanMessage("Hi"), first, AIMessage("More."), HumanMessage("Again")]
    assert (await ask(chat, history)).content == PARIS
    assert len(history) == 4


def test_tokens_are_counted_by_the_models_own_tokenizer(chat: ChatMLXGuarded) -> None:
    assert chat.get_num_tokens("héllo") == 6  # one token a byte
    assert chat.get_token_ids("") == []
    hello = [HumanMessage("hello")]
    alone = chat.get_num_tokens_from_messages(hello)
    used = chat.invoke(hello).usage_metadata
    assert used is not None
    assert used["input_tokens"] == alone
    assert chat.backend is not None
    assert chat.get_num_tokens_from_messages([*hello, SystemMessage("x" * 30)]) > alone + 30


def test_tools_count_as_tokens(backend: Backend, scripted: MakeModel) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    chat = ChatMLXGuarded(model=scripted("x", tools=True), backend=backend)
    hello = [HumanMessage("hello")]
    bare = chat.get_num_tokens_from_messages(hello)
    assert chat.get_num_tokens_from_messages(hello, tools=[add]) > bare + 50


TURNS = """\
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {{- m.role + ': ' + m.content + '\\n' }}
{%- endfor %}"""
SYSTEM_FIRST = """\
{%- for m in messages %}
    {%- if m.role == 'system' and not loop.first %}
        {{- raise_exception('system must be first') }}
    {%- endif %}
    {{- m.role + ': ' + m.content + '\\n' }}
{%- endfor %}"""


@pytest.mark.parametrize("template", [TURNS, SYSTEM_FIRST], ids=["turns", "system-first"])
@pytest.mark.parametrize("strategy", ["last", "first"])
def test_any_slice_of_a_history_can_be_counted(
    backend: Backend, scripted: MakeModel, template: str, strategy: Any
) -> None:
    history = [HumanMessage("one " * 9), AIMessage("two " * 9), HumanMessage("3"), AIMessage("4")]
    history = [SystemMessage("Be brief."), *history] if template is SYSTEM_FIRST else history
    chat = ChatMLXGuarded(model=scripted(PARIS, chat_template=template), backend=backend)
    kept = trim_messages(history, max_tokens=60, token_counter=chat, strategy=strategy)
    assert 0 < len(kept) < len(history)
    assert kept == (history[-len(kept) :] if strategy == "last" else history[: len(kept)])


def test_counting_loads_no_weights(chat: ChatMLXGuarded) -> None:
    chat.get_num_tokens_from_messages([HumanMessage("hello")])
    assert isinstance(chat.backend, BaseBackend)
    assert chat.backend.models() == []


def test_a_tokenizer_of_the_callers_own_is_used(chat: ChatMLXGuarded) -> None:
    own = chat.model_copy(update={"custom_get_token_ids": lambda text: [1, 2, 3]})
    assert own.get_num_tokens("anything") == 3


def test_making_one_loads_nothing_and_starts_no_backend(
    thinker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise AssertionError("a backend was made")

    monkeypatch.setattr("mlx_guarded_llm.backend.default_backend.default_backend", refuse)
    chat = ChatMLXGuarded(model=thinker)
    assert chat.profile is not None
    assert repr(chat) and chat.asdict() and dumpd(chat)


def test_the_profile_says_what_the_model_can_do(chat: ChatMLXGuarded, scripted: MakeModel) -> None:
    assert chat.profile is not None
    assert chat.profile["max_input_tokens"] == 2048
    assert chat.profile["reasoning_output"] is True
    assert chat.profile["tool_calling"] is True
    assert ChatMLXGuarded(model="no-such-model", backend=chat.backend).profile is None
    base = ChatMLXGuarded(model=scripted("x", chat_template=None), backend=chat.backend)
    assert base.profile is not None
    assert base.profile["tool_calling"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temprature": 1}, "temprature"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_retries": -1}, "attempts"),
        ({"max_retries": 1, "retry": RetryPolicy()}, "both given"),
        ({"on_fallback": "ignore"}, "on_fallback"),
        ({"backend": "localhost"}, "must be a Backend"),
        ({"fallbacks": [3]}, "fallbacks"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_a_wrong_argument_is_told_when_the_model_is_made(arguments: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ChatMLXGuarded(model="m", **arguments)


def test_two_instances_share_no_mutable_default() -> None:
    one, other = ChatMLXGuarded(model="m"), ChatMLXGuarded(model="m")
    one.fallbacks.append("n")
    assert other.fallbacks == []


def test_it_can_be_named_by_field_and_by_alias() -> None:
    assert ChatMLXGuarded(model="m").model_name == "m"
    by_field: dict[str, Any] = {"model_name": "m", "stop": ["x"]}
    assert ChatMLXGuarded(**by_field) == ChatMLXGuarded(model="m", stop_sequences=["x"])


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_it_is_serialised_without_its_backend_and_secrets(backend: Backend) -> None:
    chat = ChatMLXGuarded(
        model="m",
        backend=backend,
        api_key=SecretStr("SECRET"),
        temperature=0.5,
        retry=RetryPolicy(attempts=5),
        fallbacks=["n", FakeListChatModel(responses=["x"])],
        accept=lambda result: True,
    )
    plain = dumpd(chat)
    assert "SECRET" not in str(plain) + repr(chat)
    assert "backend" not in plain["kwargs"]
    assert plain["id"] == ["langchain_mlx_guarded", "chat_models", "ChatMLXGuarded"]
    simple = chat.model_copy(update={"fallbacks": ["n"]})
    again = load(
        dumpd(simple),
        valid_namespaces=["langchain_mlx_guarded"],
        allowed_objects=[ChatMLXGuarded],
    )
    assert again.asdict() == simple.asdict()
    assert again.retry == RetryPolicy(attempts=5)


def test_everything_an_answer_depends_on_identifies_it() -> None:
    base = ChatMLXGuarded(model="m").asdict()
    changes: list[dict[str, Any]] = [
        {"model": "n"},
        {"temperature": 0.5},
        {"seed": 1},
        {"thinking": False},
        {"fallbacks": ["n"]},
        {"fallbacks": [FakeListChatModel(responses=["x"])]},
        {"on_fallback": "mark"},
        {"max_retries": 5},
        {"stop": ["x"]},
        {"template_kwargs": {"x": 1}},
        {"revision": "v2"},
        {"adapter_path": "/adapters"},
        {"kv_bits": 8},
        {"context_window": 256},
    ]
    for change in changes:
        assert ChatMLXGuarded(**{"model": "m", **change}).asdict() != base, change
