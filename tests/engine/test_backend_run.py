"""Foreign MLX code under the guard: `backend.run(fn)`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from mlx_guarded_llm import Backend, Progress
from mlx_guarded_llm.errors import BackendClosed, InvalidRequest, RequestTimeout
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, text_of, wait_for


class TheirError(Exception):
    """An exception of the user's own."""


def matrix_product() -> Any:
    import mlx.core as mx

    return mx.sum(mx.ones((8, 8)) @ mx.ones((8, 8))).item()


def an_array() -> Any:
    import mlx.core as mx

    return mx.ones(3)


def raises_theirs() -> None:
    import mlx.core as mx

    held = mx.ones(1000)  # a frame that holds an array
    raise TheirError("theirs", held.size)


def test_its_value(backend: Backend) -> None:
    assert backend.run(matrix_product) == 512
    assert backend.run(lambda: None) is None
    assert backend.run(lambda: {"a": [1, (2, 3)]}) == {"a": [1, (2, 3)]}


async def test_async(backend: Backend) -> None:
    assert await backend.arun(matrix_product) == 512
    with pytest.raises(TheirError):
        await backend.arun(raises_theirs)


def test_its_name_in_the_record(backend: Backend) -> None:
    backend.run(matrix_product, label="whisper")
    (end,) = events(backend, "run.finished")
    assert end.model == "whisper"


def test_its_exception_has_its_own_type_and_a_note(backend: Backend) -> None:
    with pytest.raises(TheirError) as caught:
        backend.run(raises_theirs)
    assert caught.value.args == ("theirs", 1000)
    (note,) = caught.value.__notes__
    assert "raises_theirs" in note
    frames = [entry.name for entry in caught.traceback]
    assert "raises_theirs" not in frames, "frames of the MLX thread stay there"
    assert len(events(backend, "run.failed")) == 1
    assert backend.run(matrix_product) == 512


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_an_exception_that_would_end_a_thread(backend: Backend, error: BaseException) -> None:
    def fn() -> None:
        raise error

    with pytest.raises(type(error)):
        backend.run(fn)
    assert backend.run(matrix_product) == 512


def test_exit_inside(backend: Backend, tiny: MakeModel) -> None:
    with pytest.raises(SystemExit):
        backend.run(lambda: sys.exit(3))
    assert backend.generate(tiny(), "Hello", max_tokens=4).text


@pytest.mark.parametrize(
    "wrap",
    [
        lambda array: array,
        lambda array: [1, [array]],
        lambda array: {"a": {"b": (array,)}},
        lambda array: (1, [2, {"c": array}]),
    ],
)
def test_arrays_are_refused(backend: Backend, wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"mx\.array") as caught:
        backend.run(lambda: wrap(an_array()))
    assert "tolist" in caught.value.hint


def test_it_waits_for_generations(backend: Backend, tiny: MakeModel) -> None:
    alone = backend.generate(tiny(), "Hello", max_tokens=300).text
    stream = backend.stream(tiny(), "Hello", max_tokens=300)
    text = next(stream).text
    assert backend.run(matrix_product) == 512
    end = wait_for(backend, "request.finished", request_id=stream.request_id)
    (deferred,) = events(backend, "run.deferred")
    assert deferred.waiting_for == ((stream.request_id, tiny()),)
    assert end.time <= events(backend, "run.started")[0].time
    assert alone == text + text_of(stream)


def test_it_pauses_them_at_load_wait(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend = make_backend(load_wait=0)
    alone = backend.generate(tiny(), "Hello", max_tokens=300).text
    stream = backend.stream(tiny(), "Hello", max_tokens=300)
    text = next(stream).text
    for _ in range(3):
        assert backend.run(matrix_product) == 512
    assert alone == text + text_of(stream)
    assert any(event.details["paused"] for event in events(backend, "run.started"))


def test_beside_resident_models(backend: Backend, tiny: MakeModel) -> None:
    for n in range(3):
        text = backend.generate(tiny(), "Hello", max_tokens=8).text
        assert backend.run(matrix_product) == 512
        assert backend.generate(tiny(), "Hello", max_tokens=8).text == text, n
    assert len(events(backend, "load.finished")) == 1


def test_one_at_a_time(backend: Backend) -> None:
    def fn() -> tuple[str, float, float]:
        began = time.monotonic()
        matrix_product()
        return threading.current_thread().name, began, time.monotonic()

    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: backend.run(fn), range(8)))
    in_order = sorted(runs, key=lambda run: run[1])
    assert all(first[2] <= second[1] for first, second in pairwise(in_order))
    assert len(runs) == 8 and len({name for name, *_ in runs}) == 1


def test_timeout(backend: Backend, tiny: MakeModel) -> None:
    stream = backend.stream(tiny(), "Hello", max_tokens=1500)
    next(stream)
    ran: list[int] = []
    with pytest.raises(RequestTimeout) as caught:
        backend.run(lambda: ran.append(1), timeout=0.1)
    assert caught.value.hint
    stream.close()
    wait_for(backend, "run.cancelled")
    assert backend.run(matrix_product) == 512
    assert ran == [], "nobody waited for it any more"


def test_a_backend_cannot_go_to_its_worker(
    make_backend: MakeBackend, scripted: MakeModel, isolation: str
) -> None:
    backend = make_backend()
    if isolation == "process":
        with pytest.raises(InvalidRequest, match="cannot go to the worker"):
            backend.run(lambda: backend.generate(scripted("I am A."), "Who?"))
    assert backend.run(matrix_product) == 512


class TestFromInside:
    """The backend's own threads would wait for themselves, so they are told at once."""

    @pytest.mark.parametrize("isolation", ["thread"])  # else a function cannot hold a backend
    def test_generate_and_run(self, backend: Backend, scripted: MakeModel) -> None:
        model = scripted("I am A.")
        for call in (
            lambda: backend.generate(model, "Who?"),
            lambda: backend.run(lambda: None),
            backend.models,
        ):
            with pytest.raises(InvalidRequest, match="own threads"):
                backend.run(call)
        assert backend.generate(model, "Who?").text == "I am A."

    def test_a_progress_callback(self, backend: Backend, scripted: MakeModel) -> None:
        refused: list[BaseException] = []

        def listen(_: Progress) -> None:
            try:
                backend.models()
            except InvalidRequest as error:
                refused.append(error)

        assert backend.generate(scripted("I am A."), "Who?", on_progress=listen).text == "I am A."
        assert refused

    @pytest.mark.parametrize("isolation", ["thread"])  # as above
    def test_close(self, make_backend: MakeBackend) -> None:
        backend = make_backend()
        with pytest.raises(BackendClosed):
            backend.run(backend.close)  # it does not wait for itself
        assert backend.close() is True
