"""Whoever stops listening stops the generation, and frees its place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from langchain_core import exceptions as theirs

from langchain_mlx_guarded import ChatMLXGuarded
from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import DeadlineExceeded
from tests.conftest import MakeModel
from tests.engine._backend import wait_for, wait_until

from .test_framework import asked

LONG = 100_000  # tokens; far more than anybody reads here


@pytest.fixture
def chat(backend: Backend, scripted: MakeModel) -> ChatMLXGuarded:
    endless = scripted("tick tock ", loop=True, context_window=200_000)
    return ChatMLXGuarded(model=endless, backend=backend, max_tokens=LONG)


def idle(backend: Backend) -> Callable[[], bool]:
    return lambda: all(info.active == 0 for info in backend.models())


async def idle_soon(backend: Backend) -> None:
    await asyncio.to_thread(wait_until, idle(backend))


def test_leaving_a_stream_stops_it(backend: Backend, chat: ChatMLXGuarded) -> None:
    for _, chunk in zip(range(3), chat.stream("Go"), strict=False):
        assert chunk.response_metadata == {}
    wait_until(idle(backend))


def test_closing_a_chain_that_streams_stops_it(backend: Backend, chat: ChatMLXGuarded) -> None:
    chain = (chat | (lambda message: message)).stream("Go")
    stream = chat.stream("Go")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    chain.close()  # type: ignore[attr-defined]
    wait_until(idle(backend))


async def test_leaving_an_async_stream_stops_it(backend: Backend, chat: ChatMLXGuarded) -> None:
    async for _ in chat.astream("Go"):
        break
    await idle_soon(backend)


async def test_cancelling_a_task_stops_what_it_asked_for(
    backend: Backend, chat: ChatMLXGuarded
) -> None:
    task = asyncio.create_task(chat.ainvoke("Go", request_id="mine"))
    await asyncio.to_thread(wait_for, backend, "request.started")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle_soon(backend)


async def test_cancelling_a_task_that_streams_stops_it(
    backend: Backend, chat: ChatMLXGuarded
) -> None:
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in chat.astream("Go"):
            begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle_soon(backend)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_timeout_stops_it_and_is_langchains_own(
    backend: Backend, chat: ChatMLXGuarded, is_async: bool
) -> None:
    chat.timeout = 0.5
    with pytest.raises(theirs.ModelTimeoutError) as caught:
        await asked(chat, is_async, "Go")
    assert isinstance(caught.value, DeadlineExceeded)
    assert not caught.value.is_retryable
    await idle_soon(backend)


async def test_the_place_is_free_for_the_next(backend: Backend, scripted: MakeModel) -> None:
    endless = scripted("tick tock ", loop=True, context_window=200_000)
    chat = ChatMLXGuarded(model=endless, backend=backend)
    for _ in range(3):
        async for _ in chat.astream("Go", max_tokens=LONG):
            break
    assert (await chat.ainvoke("Go", max_tokens=5)).content
    await idle_soon(backend)
