"""A generation that nobody waits for any more ends, and its place is free again."""

from __future__ import annotations

import asyncio

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import RequestTimeout
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, wait_for, wait_until

from ._each import FACES, each_face, each_stream
from ._faces import Face, close, pieces_of

LONG = 1900

awaited = pytest.mark.parametrize("face", [f for f in FACES if f.way.startswith("a")], ids=str)


@pytest.fixture
def backend(make_backend: MakeBackend) -> Backend:
    """With one place for each model: one that is not freed blocks the next request."""
    return make_backend(max_active=1)


@pytest.fixture
def endless(scripted: MakeModel) -> str:
    """A model that goes on until it is stopped."""
    return scripted("and so on, ", loop=True)


def place_is_free(backend: Backend, model: str) -> None:
    """The request stopped long before its end; the next one gets its place."""
    end = wait_for(backend, "request.finished")
    assert end.cause == "cancelled"
    assert end.details["completion_tokens"] < LONG // 2
    wait_until(lambda: all(info.active == 0 for info in backend.models()))
    assert backend.generate(model, "Hi", max_tokens=2).usage.completion_tokens == 2


@each_stream
async def test_a_stream_that_is_left_early(face: Face, backend: Backend, endless: str) -> None:
    llm = face.make(backend, endless, max_tokens=LONG)  # it lives on, so nothing ends by chance
    stream = await face.open(llm, "Talk.")
    pieces = pieces_of(stream)
    for _ in range(3):
        await anext(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]
    await close(stream)
    await asyncio.to_thread(place_is_free, backend, endless)


@each_stream
async def test_a_stream_that_was_not_read_leaves_no_generation(
    face: Face, backend: Backend, endless: str
) -> None:
    stream = await face.open(face.make(backend, endless, max_tokens=LONG), "Talk.")
    await close(stream)
    assert events(backend, "request.first_token") == []
    assert backend.generate(endless, "Hi", max_tokens=2).usage.completion_tokens == 2


@awaited
async def test_a_task_that_is_cancelled(face: Face, backend: Backend, endless: str) -> None:
    llm = face.make(backend, endless, max_tokens=LONG)
    task = asyncio.create_task(face.ask(llm, "Talk."))
    await asyncio.to_thread(wait_for, backend, "request.first_token")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(place_is_free, backend, endless)


@awaited
async def test_a_task_that_waits_for_its_place_is_cancelled(
    face: Face, backend: Backend, endless: str
) -> None:
    holder = backend.stream(endless, "Talk.", max_tokens=LONG)
    next(holder)
    task = asyncio.create_task(face.ask(face.make(backend, endless), "Me too."))

    def waiting() -> bool:
        return any(info.waiting for info in backend.models())

    await asyncio.to_thread(wait_until, waiting)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(wait_until, lambda: not waiting())
    holder.close()
    await asyncio.to_thread(wait_until, lambda: all(m.active == 0 for m in backend.models()))
    assert len(events(backend, "request.started")) == 1


@each_face
async def test_a_timeout(face: Face, backend: Backend, endless: str) -> None:
    backend.load(endless)
    llm = face.make(backend, endless, max_tokens=LONG)
    with pytest.raises(RequestTimeout):
        await face.ask(llm, "Talk.", timeout=0.05)
    await asyncio.to_thread(wait_until, lambda: all(m.active == 0 for m in backend.models()))
    assert backend.generate(endless, "Hi", max_tokens=2).usage.completion_tokens == 2
