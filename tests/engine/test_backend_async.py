"""The async face: the loop never blocks, and a cancelled task frees its place."""

from __future__ import annotations

import asyncio

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import BackendClosed, RequestTimeout
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events

LONG = 1500


async def until(backend: Backend, kind: str, count: int = 1, **fields: str) -> None:
    async with asyncio.timeout(60):
        # Another thread brings it about, so there is no event of asyncio to wait for.
        while len(events(backend, kind, **fields)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_twenty_at_once_and_the_loop_goes_on(backend: Backend, tiny: MakeModel) -> None:
    record = backend.record
    alone = [(await backend.agenerate(tiny(), f"{n}?", max_tokens=10)).text for n in range(20)]
    ticks: list[int] = []

    async def tick() -> None:
        while True:
            kinds = [event.kind for event in record.events()]
            ticks.append(kinds.count("request.finished"))
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    results = await asyncio.gather(
        *(backend.agenerate(tiny(), f"{n}?", max_tokens=10) for n in range(20))
    )
    ticker.cancel()
    assert [result.text for result in results] == alone
    assert len(ticks) > 20, "it ticked while they ran"
    assert ticks[0] == 20 and ticks[-1] >= 39


async def test_the_loop_goes_on_during_a_load(backend: Backend, tiny: MakeModel) -> None:
    ticks = 0
    task = asyncio.create_task(backend.aload(tiny(layers=8, hidden_size=256)))
    while not task.done():
        ticks += 1
        await asyncio.sleep(0)
    assert (await task).state == "resident" and ticks > 5


async def test_cancelling_the_task_stops_the_generation(backend: Backend, tiny: MakeModel) -> None:
    task = asyncio.create_task(
        backend.agenerate(tiny(), "Hello", max_tokens=LONG, request_id="mine")
    )
    await until(backend, "request.first_token")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(backend, "request.finished")
    (end,) = events(backend, "request.finished", request_id="mine")
    assert end.cause == "cancelled" and end.details["completion_tokens"] < LONG / 2
    assert all(info.active == 0 for info in backend.models())


async def test_a_cancelled_task_frees_its_place(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend = make_backend(max_active=1)
    first = asyncio.create_task(backend.agenerate(tiny(), "Hello", max_tokens=LONG))
    await until(backend, "request.first_token")
    waiting = asyncio.create_task(backend.agenerate(tiny(), "Hello", max_tokens=4))
    await until(backend, "request.queued", 2)
    assert not waiting.done()
    first.cancel()
    assert (await waiting).finish_reason == "length"


async def test_cancelled_while_waiting(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend = make_backend(max_active=1)
    stream = backend.astream(tiny(), "Hello", max_tokens=LONG)
    await anext(stream)
    waiting = asyncio.create_task(
        backend.agenerate(tiny(), "Hello", max_tokens=4, request_id="waits")
    )
    await until(backend, "request.queued", request_id="waits")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(backend, "request.failed", request_id="waits")
    assert events(backend, "request.started", request_id="waits") == []
    await stream.aclose()


async def test_many_cancelled_at_every_moment(backend: Backend, tiny: MakeModel) -> None:
    """Whatever a cancel meets, nobody else is harmed."""
    await backend.aload(tiny())
    for turns in range(30):
        task = asyncio.create_task(backend.agenerate(tiny(), "Hello", max_tokens=3))
        for _ in range(turns):
            await asyncio.sleep(0.0007)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    result = await backend.agenerate(tiny(), "Hello", max_tokens=4)
    assert result.finish_reason == "length"
    assert events(backend, "engine.failed") == []


async def test_leaving_a_stream_early(backend: Backend, tiny: MakeModel) -> None:
    seen = 0
    stream = backend.astream(tiny(), "Hello", max_tokens=LONG)
    async with stream:
        async for _ in stream:
            seen += 1
            if seen == 3:
                break
    await until(backend, "request.finished")
    (end,) = events(backend, "request.finished")
    assert end.cause == "cancelled" and end.details["completion_tokens"] < LONG / 2
    assert [chunk async for chunk in stream] == []


async def test_dropping_a_stream(backend: Backend, tiny: MakeModel) -> None:
    async for _ in backend.astream(tiny(), "Hello", max_tokens=LONG):
        break
    await until(backend, "request.finished")
    assert events(backend, "request.finished")[0].cause == "cancelled"


async def test_cancelling_the_task_that_reads(backend: Backend, tiny: MakeModel) -> None:
    async def read() -> None:
        async for _ in backend.astream(tiny(), "Hello", max_tokens=LONG):
            pass

    task = asyncio.create_task(read())
    await until(backend, "request.first_token")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(backend, "request.finished")
    assert events(backend, "request.finished")[0].cause == "cancelled"


class TestTimeouts:
    async def test_running(self, backend: Backend, tiny: MakeModel) -> None:
        await backend.aload(tiny())
        with pytest.raises(RequestTimeout) as caught:
            await backend.agenerate(tiny(), "Hello", max_tokens=LONG, timeout=0.3)
        assert "generating" in str(caught.value) and caught.value.hint
        await until(backend, "request.finished")
        assert (await backend.agenerate(tiny(), "Hello", max_tokens=4)).text

    async def test_waiting(self, make_backend: MakeBackend, tiny: MakeModel) -> None:
        backend = make_backend(max_active=1)
        stream = backend.astream(tiny(), "Hello", max_tokens=LONG)
        await anext(stream)
        with pytest.raises(RequestTimeout) as caught:
            await backend.agenerate(tiny(), "Hello", max_tokens=4, timeout=0.1)
        assert "waiting" in str(caught.value) and caught.value.hint
        assert [info.waiting for info in backend.models()] == [0]
        await stream.aclose()

    async def test_a_stream(self, backend: Backend, tiny: MakeModel) -> None:
        await backend.aload(tiny())
        stream = backend.astream(tiny(), "Hello", max_tokens=LONG, timeout=0.5)
        assert (await anext(stream)).finish_reason is None
        with pytest.raises(RequestTimeout):
            await anext(chunk async for chunk in stream if chunk.finish_reason)
        assert [chunk async for chunk in stream] == []

    async def test_of_zero(self, backend: Backend, tiny: MakeModel) -> None:
        with pytest.raises(RequestTimeout):
            await backend.agenerate(tiny(), "Hello", max_tokens=4, timeout=0)

    async def test_of_a_load_behind_a_generation(self, backend: Backend, tiny: MakeModel) -> None:
        stream = backend.astream(tiny(), "Hello", max_tokens=LONG)
        await anext(stream)
        with pytest.raises(RequestTimeout):
            await backend.aload(tiny(seed=2), timeout=0.1)
        await stream.aclose()
        assert (await backend.agenerate(tiny(), "Hello", max_tokens=4)).text
        assert events(backend, "load.started", model=tiny(seed=2)) == []


async def test_async_with(make_backend: MakeBackend, tiny: MakeModel) -> None:
    async with make_backend() as backend:
        task = asyncio.create_task(backend.agenerate(tiny(), "Hello", max_tokens=LONG))
        await until(backend, "request.first_token")
    with pytest.raises(BackendClosed):
        await task
    with pytest.raises(BackendClosed):
        await backend.agenerate(tiny(), "Hello")
