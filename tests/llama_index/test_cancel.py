"""A generation that nobody waits for any more stops, and its place is free again."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.llms import ChatResponse
from llama_index.llms.mlx_guarded import MLXGuarded

from mlx_guarded_llm import Backend, Event
from mlx_guarded_llm.errors import RequestTimeout
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, wait_for, wait_until
from tests.llama_index._helpers import user

LONG = 1500


@pytest.fixture
def backend(make_backend: MakeBackend) -> Backend:
    """With one place for each model: one that is not freed blocks the next request."""
    return make_backend(max_active=1)


@pytest.fixture
def llm(backend: Backend, tiny: MakeModel) -> MLXGuarded:
    return MLXGuarded(model=tiny(), backend=backend, max_tokens=LONG)


def assert_it_stopped(backend: Backend, llm: MLXGuarded) -> None:
    end: Event = wait_for(backend, "request.finished")
    assert end.cause == "cancelled"
    assert end.details["completion_tokens"] < 200, "it stopped long before its end"
    assert llm.chat(user(), max_tokens=4).message.content, "its place is free"


Responses = Generator[ChatResponse, None, None]


def by_break(stream: Responses) -> None:
    for n, _ in enumerate(stream):
        if n == 2:
            break


def by_close(stream: Responses) -> None:
    next(stream)
    stream.close()


def by_nothing(stream: Responses) -> None:
    next(stream)


@pytest.mark.parametrize("method", ["stream_chat", "stream_complete"])
@pytest.mark.parametrize("leave", [by_break, by_close, by_nothing])
def test_a_stream_left_early(
    backend: Backend, llm: MLXGuarded, leave: Callable[[Any], None], method: str
) -> None:
    subject: Any = user() if method == "stream_chat" else "Hello"
    leave(getattr(llm, method)(subject))
    gc.collect()
    assert_it_stopped(backend, llm)


def test_a_stream_left_early_while_a_handler_keeps_its_exception(
    backend: Backend, tiny: MakeModel
) -> None:
    # The exception's traceback holds LlamaIndex's wrapper, and that holds the stream.
    handler = LlamaDebugHandler(print_trace_on_end=False)
    llm = MLXGuarded(
        model=tiny(),
        backend=backend,
        max_tokens=LONG,
        callback_manager=CallbackManager([handler]),
    )
    by_break(llm.stream_chat(user()))
    assert_it_stopped(backend, llm)


def test_a_stream_that_was_never_read_asks_for_nothing(backend: Backend, llm: MLXGuarded) -> None:
    llm.stream_chat(user()).close()
    assert events(backend, "request.") == []


async def test_an_async_stream_left_early(backend: Backend, llm: MLXGuarded) -> None:
    async for _ in await llm.astream_chat(user()):
        break
    await asyncio.to_thread(assert_it_stopped, backend, llm)


async def test_an_async_stream_that_is_closed(backend: Backend, llm: MLXGuarded) -> None:
    stream: AsyncGenerator[Any, None] = await llm.astream_complete("Hello")
    await anext(stream)
    await stream.aclose()
    await asyncio.to_thread(assert_it_stopped, backend, llm)


async def read(llm: MLXGuarded) -> None:
    async for _ in await llm.astream_chat(user()):
        pass


async def ask(llm: MLXGuarded) -> None:
    await llm.achat(user())


@pytest.mark.parametrize("use", [ask, read])
async def test_a_task_that_is_cancelled(backend: Backend, llm: MLXGuarded, use: Any) -> None:
    task = asyncio.create_task(use(llm))
    await asyncio.to_thread(wait_for, backend, "request.first_token")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(assert_it_stopped, backend, llm)


async def test_an_answer_that_its_caller_gives_up(backend: Backend, llm: MLXGuarded) -> None:
    task = asyncio.ensure_future(asyncio.wait_for(llm.achat(user()), timeout=None))
    await asyncio.to_thread(wait_for, backend, "request.first_token")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.to_thread(assert_it_stopped, backend, llm)


def test_a_timeout(backend: Backend, llm: MLXGuarded) -> None:
    llm.chat(user(), max_tokens=2)  # it is loaded
    with pytest.raises(RequestTimeout):
        llm.chat(user(), max_tokens=LONG, timeout=0.05)
    wait_until(lambda: len(events(backend, "request.finished")) >= 1)
    assert llm.chat(user(), max_tokens=4).message.content, "its place is free"


def test_a_structured_stream_left_early(
    backend: Backend, llm: MLXGuarded, scripted: MakeModel
) -> None:
    from llama_index.core.prompts import PromptTemplate
    from pydantic import BaseModel

    class Words(BaseModel):
        words: list[str]

    model = scripted('{"words": ["one", "two", "three", "four"', loop=True)
    talker = MLXGuarded(model=model, backend=backend, max_tokens=LONG, constrain=False)
    for found in talker.stream_structured_predict(Words, PromptTemplate("Count.")):
        if getattr(found, "words", None):
            break
    gc.collect()
    assert_it_stopped(backend, llm)
