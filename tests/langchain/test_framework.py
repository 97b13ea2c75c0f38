"""What LangChain promises of every chat model, seen on ours with a small real model."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableConfig

from langchain_mlx_guarded import ChatMLXGuarded
from mlx_guarded_llm import Backend, BaseBackend, RetryPolicy
from mlx_guarded_llm.errors import DegradedAnswer, EngineDied
from mlx_guarded_llm.results import Result
from mlx_guarded_llm.testing.faulty import FaultyBackend, Says
from tests.conftest import MakeModel

from .test_chat_models import each_way
from .test_retries import Cloud

TEXT = "One, two, three, four."


@pytest.fixture
def chat(backend: Backend, scripted: MakeModel) -> ChatMLXGuarded:
    return ChatMLXGuarded(model=scripted(TEXT), backend=backend)


class Recorder(BaseCallbackHandler):
    """Keeps what the callbacks were told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.events.append(("start", {"serialized": serialized, "messages": messages, **kwargs}))

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.events.append(("token", token))

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.events.append(("end", response))

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.events.append(("error", error))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


def told(recorder: Recorder) -> RunnableConfig:
    return {"callbacks": [recorder]}


# ---- callbacks and tracing -----------------------------------------------------------------


def test_each_token_is_told_once(chat: ChatMLXGuarded) -> None:
    recorder = Recorder()
    chunks = list(chat.stream("Count", config=told(recorder)))
    tokens = [token for kind, token in recorder.events if kind == "token"]
    assert tokens == [chunk.content for chunk in chunks]
    assert "".join(tokens) == TEXT
    assert recorder.kinds()[0] == "start"
    assert recorder.kinds()[-1] == "end"


def test_streaming_inside_invoke_is_the_callers_choice(chat: ChatMLXGuarded) -> None:
    recorder = Recorder()
    chat.invoke("Count", config=told(recorder))
    assert recorder.kinds() == ["start", "end"]
    streaming = ChatMLXGuarded(model=chat.model_name, backend=chat.backend, streaming=True)
    recorder = Recorder()
    message = streaming.invoke("Count", config=told(recorder))
    assert recorder.kinds().count("token") > 5
    assert message.content == TEXT
    assert message.response_metadata["guard"]["served_model"] == chat.model_name


def test_an_error_is_told(backend: Backend) -> None:
    recorder = Recorder()
    with pytest.raises(LookupError):
        ChatMLXGuarded(model="no-such-model", backend=backend).invoke("Hi", config=told(recorder))
    assert recorder.kinds() == ["start", "error"]


@pytest.mark.parametrize("streamed", [False, True])
def test_traces_name_the_provider_the_model_and_its_settings(
    chat: ChatMLXGuarded, scripted: MakeModel, streamed: bool
) -> None:
    recorder = Recorder()
    other = scripted("Other.")
    bound = chat.bind(model=other, temperature=0.5, max_tokens=20)
    if streamed:
        list(bound.stream("Count", config=told(recorder), stop=["x"]))
    else:
        bound.invoke("Count", config=told(recorder), stop=["x"])
    start = recorder.events[0][1]
    metadata = start["metadata"]
    assert metadata["ls_provider"] == "mlx_guarded"
    assert metadata["ls_model_name"] == other
    assert metadata["ls_model_type"] == "chat"
    assert metadata["ls_temperature"] == 0.5
    assert metadata["ls_max_tokens"] == 20
    assert metadata["ls_stop"] == ["x"]
    assert start["invocation_params"]["_type"] == "mlx-guarded-chat"
    assert "backend" not in str(start["serialized"])


def test_usage_is_counted_by_the_model_that_served(chat: ChatMLXGuarded) -> None:
    counter = UsageMetadataCallbackHandler()
    message = chat.invoke("Count", config={"callbacks": [counter]})
    assert counter.usage_metadata == {chat.model_name: message.usage_metadata}


def test_a_nested_fallback_is_not_traced_or_counted_twice() -> None:
    backend: Any = FaultyBackend(faults={"big": [EngineDied("dead.")]})
    retry = RetryPolicy(attempts=1)
    chat = ChatMLXGuarded(
        model="big", backend=backend, fallbacks=[Cloud()], on_fallback="mark", retry=retry
    )
    recorder = Recorder()
    chain = ChatPromptTemplate.from_messages([("user", "{q}")]) | chat
    chain.invoke({"q": "Hi"}, config=told(recorder))
    assert recorder.kinds() == ["start", "end"]


async def test_astream_events_tells_each_chunk_and_the_end(chat: ChatMLXGuarded) -> None:
    chain = chat | StrOutputParser()
    events = [event async for event in chain.astream_events("Count", version="v2")]
    chunks = [e["data"]["chunk"] for e in events if e["event"] == "on_chat_model_stream"]
    assert "".join(str(chunk.content) for chunk in chunks) == TEXT
    (end,) = [e for e in events if e["event"] == "on_chat_model_end"]
    message = end["data"]["output"]
    assert message.content == TEXT
    assert message.response_metadata["guard"]["served_model"] == chat.model_name
    assert [e["event"] for e in events].count("on_chat_model_start") == 1


@pytest.mark.filterwarnings("ignore:.*is in beta")
async def test_the_newest_event_protocol_carries_the_guard(chat: ChatMLXGuarded) -> None:
    stream = await chat.astream_events("Count", version="v3")
    events = [event async for event in stream]
    assert events
    message = await stream.output
    assert message.text == TEXT
    assert message.response_metadata["guard"]["served_model"] == chat.model_name


# ---- many at once --------------------------------------------------------------------------


def test_a_batch_keeps_its_order(chat: ChatMLXGuarded, scripted: MakeModel) -> None:
    answers = chat.batch(["a", "b", "c", "d"])
    assert [answer.content for answer in answers] == [TEXT] * 4
    ids = {answer.response_metadata["guard"]["request_id"] for answer in answers}
    assert len(ids) == 4


async def test_an_async_batch_reports_failures_in_place(chat: ChatMLXGuarded) -> None:
    good, bad = await chat.abatch(["a", "x" * 3000], return_exceptions=True)
    assert isinstance(good, AIMessage)
    assert isinstance(bad, Exception)


async def test_models_are_asked_side_by_side(backend: Backend, scripted: MakeModel) -> None:
    chats = [ChatMLXGuarded(model=scripted(f"I am {n}."), backend=backend) for n in "AB"]
    answers = [await chat.abatch(["x", "y"]) for chat in chats]
    texts = [[answer.content for answer in each] for each in answers]
    assert texts == [["I am A."] * 2, ["I am B."] * 2]


# ---- the rate limiter, configuration ---------------------------------------------------------


class Counter(InMemoryRateLimiter):
    def __init__(self) -> None:
        super().__init__(requests_per_second=1e6, max_bucket_size=1e6)
        self.taken = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.taken += 1
        return super().acquire(blocking=blocking)

    async def aacquire(self, *, blocking: bool = True) -> bool:
        self.taken += 1
        return await super().aacquire(blocking=blocking)


@each_way
async def test_the_rate_limiter_is_asked_once_a_call(ask: Any, chat: ChatMLXGuarded) -> None:
    chat.rate_limiter = counter = Counter()
    await ask(chat, "Count")
    assert counter.taken == 1


@each_way
async def test_fields_can_be_configured_at_run_time(
    ask: Any, chat: ChatMLXGuarded, scripted: MakeModel
) -> None:
    other = scripted("Other.")
    chain = chat.configurable_fields(model_name=ConfigurableField(id="model"))
    message = await ask(chain, "Hi", config={"configurable": {"model": other}})
    assert message.content == "Other."


# ---- caching -------------------------------------------------------------------------------


@pytest.fixture
def cache() -> InMemoryCache:
    return InMemoryCache()


def answer_ids(*messages: AIMessage) -> list[str]:
    return [message.response_metadata["guard"]["request_id"] for message in messages]


async def asked(chat: Any, is_async: bool, *args: Any, **kwargs: Any) -> AIMessage:
    message: AIMessage = (
        await chat.ainvoke(*args, **kwargs) if is_async else chat.invoke(*args, **kwargs)
    )
    return message


both = pytest.mark.parametrize("is_async", [False, True])


@both
async def test_a_cached_answer_keeps_its_guard(
    chat: ChatMLXGuarded, cache: InMemoryCache, is_async: bool
) -> None:
    chat.cache = cache
    first, second = [await asked(chat, is_async, "Count") for _ in range(2)]
    one, other = answer_ids(first, second)
    assert one == other
    assert second.content == TEXT
    third = await asked(chat, is_async, "Count", temperature=0.5)
    assert answer_ids(third) != [one]


@both
async def test_the_global_cache_is_used(
    chat: ChatMLXGuarded, cache: InMemoryCache, is_async: bool
) -> None:
    set_llm_cache(cache)
    try:
        first, second = [await asked(chat, is_async, "Count") for _ in range(2)]
        chat.cache = False
        third = await asked(chat, is_async, "Count")
    finally:
        set_llm_cache(None)
    assert answer_ids(first) == answer_ids(second) != answer_ids(third)


@both
async def test_a_fallbacks_answer_is_not_served_from_the_cache(
    backend: Backend, scripted: MakeModel, cache: InMemoryCache, is_async: bool
) -> None:
    big, small = scripted("Big."), scripted("Small.")
    faulty: Any = FaultyBackend(backend, {big: [EngineDied("dead.")]})
    chat = ChatMLXGuarded(
        model=big,
        backend=faulty,
        fallbacks=[small],
        on_fallback="mark",
        retry=RetryPolicy(attempts=1),
        cache=cache,
    )
    contents = [(await asked(chat, is_async, "Hi")).content for _ in range(3)]
    assert contents == ["Small.", "Big.", "Big."]
    assert len(faulty.calls) == 3  # the last was cached


@both
async def test_a_degraded_answer_is_not_served_from_the_cache(
    backend: Backend, scripted: MakeModel, cache: InMemoryCache, is_async: bool
) -> None:
    big = scripted("Big.")
    faulty: Any = FaultyBackend(backend, {big: [Says("")]})
    chat = ChatMLXGuarded(
        model=big, backend=faulty, on_degraded="mark", retry=RetryPolicy(attempts=1), cache=cache
    )
    contents = [(await asked(chat, is_async, "Hi")).content for _ in range(2)]
    assert contents == ["", "Big."]


@both
async def test_what_is_refused_is_refused_from_the_cache_as_well(
    chat: ChatMLXGuarded, cache: InMemoryCache, is_async: bool
) -> None:
    chat.cache = cache
    first = await asked(chat, is_async, "Count")

    def refuse(result: Result) -> bool:
        assert result.text == TEXT and result.guard.as_asked
        return False

    with pytest.raises(DegradedAnswer):
        await asked(chat, is_async, "Count", accept=refuse)
    careful = chat.model_copy(update={"accept": refuse})
    with pytest.raises(DegradedAnswer):
        await asked(careful, is_async, "Count")
    content = await asked(chat, is_async, "Count", accept=lambda result: True)
    assert answer_ids(content) == answer_ids(first), "one that is accepted is served"


@both
async def test_what_the_caller_cut_off_is_cached(
    chat: ChatMLXGuarded, cache: InMemoryCache, is_async: bool
) -> None:
    chat.cache = cache
    first, second = [await asked(chat, is_async, "Count", max_tokens=3) for _ in range(2)]
    assert answer_ids(first) == answer_ids(second)


def test_other_weights_under_the_same_name_are_another_answer(
    chat: ChatMLXGuarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    before = chat._get_llm_string()
    assert isinstance(chat.backend, BaseBackend)
    card = chat.backend.card(chat.model_name)
    assert card is not None
    changed = replace(card, fingerprint="other")
    monkeypatch.setattr(chat.backend, "card", lambda name: changed)
    assert chat._get_llm_string() != before
    assert chat._get_llm_string(temperature=1.0) != chat._get_llm_string(temperature=0.0)


def test_what_a_model_is_loaded_with_is_in_the_key(chat: ChatMLXGuarded) -> None:
    keys = {chat._get_llm_string()}
    loading: list[dict[str, Any]] = [
        {"context_window": 256},
        {"kv_bits": 8},
        {"context_window": 512},
    ]
    for options in loading:
        keys |= {chat._get_llm_string(**options)}
        keys |= {chat.model_copy(update=options)._get_llm_string()}
    assert len(keys) == 7


def test_an_answer_has_an_id_of_its_run(chat: ChatMLXGuarded) -> None:
    run = uuid.uuid4()
    message = chat.invoke("Count", config={"run_id": run})
    assert str(run) in str(message.id)
