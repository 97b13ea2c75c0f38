"""Callbacks and instrumentation: one event of each kind for a call, and true token counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    LlamaDebugHandler,
    TokenCountingHandler,
)
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.prompts import PromptTemplate
from llama_index.core.rate_limiter import BaseRateLimiter
from llama_index.llms.mlx_guarded import MLXGuarded
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel

from mlx_guarded_llm.errors import InvalidRequest, ModelNotFound
from mlx_guarded_llm.testing.faulty import Says
from tests.llama_index._helpers import Fake, big, user


class Counts(BaseEventHandler):
    """How often each kind of event came."""

    seen: list[Any] = []  # noqa: RUF012 - pydantic copies it

    @classmethod
    def class_name(cls) -> str:
        return "Counts"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.seen.append(event)

    @property
    def kinds(self) -> Counter[str]:
        return Counter(type(event).__name__ for event in self.seen)


@pytest.fixture
def counts() -> Iterator[Counts]:
    handler = Counts(seen=[])
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers.remove(handler)


async def use(llm: MLXGuarded, method: str) -> None:
    subject: Any = user() if "chat" in method else "Hi"
    if method.startswith("a"):
        answer = await getattr(llm, method)(subject)
        if "stream" in method:
            assert [response async for response in answer]
    else:
        answer = getattr(llm, method)(subject)
        if "stream" in method:
            assert list(answer)


CHATS = ["chat", "achat", "stream_chat", "astream_chat"]
COMPLETIONS = ["complete", "acomplete", "stream_complete", "astream_complete"]


@pytest.mark.parametrize("method", CHATS)
async def test_a_chat_is_one_event_of_each_kind(method: str, counts: Counts) -> None:
    await use(big(Fake()), method)
    kinds = counts.kinds
    assert kinds["LLMChatStartEvent"] == kinds["LLMChatEndEvent"] == 1
    assert (kinds["LLMChatInProgressEvent"] > 0) == ("stream" in method)
    assert not any("Completion" in kind for kind in kinds)


@pytest.mark.parametrize("method", COMPLETIONS)
async def test_a_completion_is_one_event_of_each_kind(method: str, counts: Counts) -> None:
    await use(big(Fake()), method)
    kinds = counts.kinds
    assert kinds["LLMCompletionStartEvent"] == kinds["LLMCompletionEndEvent"] == 1
    assert not any("Chat" in kind for kind in kinds), "the chat behind it tells nothing"


def test_the_events_carry_the_answer_and_its_guard(counts: Counts) -> None:
    list(big(Fake()).stream_chat(user(), seed=3))
    start, *_, end = counts.seen
    assert start.additional_kwargs == {"seed": 3}
    assert start.model_dict["model_name"] == "big"
    assert end.response.raw["guard"]["served_model"] == "big"


def test_an_event_of_a_prediction(counts: Counts) -> None:
    class Place(BaseModel):
        name: str

    llm = big(Fake(big=[Says('{"name": "Paris"}')]))
    llm.structured_predict(Place, PromptTemplate("Where?"))
    kinds = counts.kinds
    assert kinds["LLMStructuredPredictStartEvent"] == kinds["LLMStructuredPredictEndEvent"] == 1
    assert kinds["LLMChatStartEvent"] == 1


@pytest.mark.parametrize("method", [*CHATS, *COMPLETIONS])
async def test_tokens_are_counted_once_and_by_the_model(method: str) -> None:
    counter = TokenCountingHandler(tokenizer=lambda text: [text] * 1000)
    await use(big(Fake(), callback_manager=CallbackManager([counter])), method)
    (event,) = counter.llm_token_counts
    assert (event.prompt_token_count, event.completion_token_count) == (5, 2), "its raw usage"
    assert counter.total_llm_token_count == 7


@pytest.mark.parametrize("method", [*CHATS, *COMPLETIONS])
async def test_an_error_ends_its_event(method: str) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    llm = big(Fake(big=[ModelNotFound("gone.")]), callback_manager=CallbackManager([handler]))
    with pytest.raises(ModelNotFound):
        await use(llm, method)
    ((_, end),) = handler.get_event_pairs(CBEventType.LLM)
    assert end.payload is not None and isinstance(end.payload["exception"], ModelNotFound)


@pytest.mark.parametrize("method", [*CHATS, *COMPLETIONS])
async def test_a_wrong_option_ends_its_event_too(method: str) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    llm = big(
        Fake(), callback_manager=CallbackManager([handler]), additional_kwargs={"temprature": 1}
    )
    with pytest.raises(InvalidRequest):
        await use(llm, method)
    ((_, end),) = handler.get_event_pairs(CBEventType.LLM)
    assert end.payload is not None and isinstance(end.payload["exception"], InvalidRequest)


class Limiter(BaseRateLimiter):
    """Counts who asks."""

    asked: int = 0

    def acquire(self, num_tokens: int = 0) -> None:
        self.asked += 1

    async def async_acquire(self, num_tokens: int = 0) -> None:
        self.asked += 1


@pytest.mark.parametrize("method", [*CHATS, *COMPLETIONS])
async def test_a_rate_limiter_is_asked_once(method: str) -> None:
    limiter = Limiter()
    await use(big(Fake(), rate_limiter=limiter), method)
    assert limiter.asked == 1
