"""What leaves the MLX thread holds no array: no result, and no exception."""

from __future__ import annotations

import asyncio
import gc
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.engine.user_function import call_user_function
from mlx_guarded_llm.errors import (
    GenerationFailed,
    GuardedLLMError,
    InvalidRequest,
    ModelInvalid,
    NonFiniteLogits,
)
from mlx_guarded_llm.testing.tiny import make_tiny_model
from tests.engine.threads.conftest import active_memory


def reachable(error: BaseException) -> Iterator[object]:
    """All that an exception holds: attributes, frames and their variables, its family."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        thing = waiting.pop()
        if thing is None or id(thing) in seen:
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, BaseException):
            waiting += [thing.__cause__, thing.__context__, thing.__traceback__]
            waiting += [*thing.args, *vars(thing).values()]
        elif isinstance(thing, types.TracebackType):
            waiting += [thing.tb_next, *thing.tb_frame.f_locals.values()]
        elif isinstance(thing, (list, tuple, dict)):
            waiting += thing.values() if isinstance(thing, dict) else thing


def held(error: BaseException) -> set[str]:
    """What an exception has no business to hold: arrays, generators, frames of the engine."""
    kinds = {type(thing).__name__ for thing in reachable(error)}
    frames = [t.tb_frame for t in reachable(error) if isinstance(t, types.TracebackType)]
    files = {Path(frame.f_code.co_filename).name for frame in frames}
    engine = {
        "engine.py",
        "batch.py",
        "residents.py",
        "loading.py",
        "user_function.py",
        "thread.py",
    }
    return kinds & {"array", "generator", "Resident", "Linear"} | files & engine


def test_a_failed_load_holds_nothing(backend: Backend, folder: Path) -> None:
    with pytest.raises(GuardedLLMError) as caught:
        backend.load(str(folder / "mismatched"))
    assert not held(caught.value)


def test_a_load_that_fails_within_mlx_holds_nothing(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.run(lambda: None)
    from mlx_guarded_llm.engine.residency import loading

    def failing(model: Any, slice_bytes: int) -> Any:
        import mlx.core as mx

        array = mx.ones(10_000)
        mx.eval(array)
        raise KeyError("a weight", model, array)

    before = active_memory()
    monkeypatch.setattr(loading, "_slices", failing)
    with pytest.raises(ModelInvalid) as caught:
        backend.load(str(folder / "tiny"))
    assert not held(caught.value)
    assert active_memory() <= before + 1024


def test_a_failed_generation_holds_nothing(backend: Backend, folder: Path) -> None:
    with pytest.raises(NonFiniteLogits) as caught:
        backend.generate(str(folder / "nan"), "Hello", max_tokens=4)
    assert not held(caught.value)


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_a_failed_step_holds_nothing(
    kv_bits: int | None, backend: Backend, folder: Path, tmp_path: Path
) -> None:
    """All in the batch are told, each with an error of its own frames, and it goes on."""
    model = make_tiny_model(tmp_path / "model", hidden_size=128, context_window=50_000)
    aliases = tmp_path / "models.toml"
    options = "" if kv_bits is None else f"kv_bits = {kv_bits}\nkv_group_size = 32\n"
    aliases.write_text(f'[it]\nmodel = "{model}"\n{options}')
    from mlx_guarded_llm import Catalog

    catalog = Catalog(aliases_file=aliases, cache_dir=tmp_path)
    with Backend(isolation="thread", catalog=catalog, load_wait=0.0) as own:
        streams = [own.stream("it", "Hello", max_tokens=10_000) for _ in range(3)]
        for stream in streams:
            next(stream)
        engine: Any = own._dispatcher.supervisor.engine

        def break_it() -> None:
            def fail() -> None:
                import mlx.core as mx

                array = mx.ones(1000)
                raise RuntimeError("of a step", array)

            engine._residents["it"].decoder.step = fail

        own.run(break_it)
        for stream in streams:
            with pytest.raises(GenerationFailed) as caught:
                for _ in stream:
                    pass
            assert not held(caught.value)
        gc.collect()  # here, not on the MLX thread: no generator may be left to close
        assert own.generate("it", "Hello", max_tokens=3).usage.completion_tokens == 3


class Chained(Exception):
    """With a cause and a context of its own."""


def raising() -> None:
    import mlx.core as mx

    array = mx.ones(1000)
    try:
        try:
            array.reshape(7)
        except ValueError:
            _ = 1 / 0
    except ZeroDivisionError as context:
        error = Chained("of the user", float(array.sum()))
        error.__context__ = context
        raise error from KeyError("a cause")


def raising_a_group() -> None:
    def member() -> BaseException:
        import mlx.core as mx

        array = mx.ones(1000)
        try:
            array.reshape(7)
        except ValueError as error:
            return error
        raise AssertionError

    raise BaseExceptionGroup("several", [member(), member()])


@pytest.mark.parametrize("fn", [raising, raising_a_group])
def test_an_exception_of_foreign_work_holds_nothing(
    fn: Callable[[], None], backend: Backend
) -> None:
    with pytest.raises((Chained, BaseExceptionGroup)) as caught:
        backend.run(fn)
    assert "On the MLX thread" in "".join(caught.value.__notes__)
    members = getattr(caught.value, "exceptions", ())
    for error in (caught.value, *members):
        assert not held(error)


def test_an_exception_that_carries_an_array_stays(backend: Backend) -> None:
    def work() -> None:
        import mlx.core as mx

        raise Chained("look", {"at": mx.ones(10)})

    with pytest.raises(InvalidRequest, match=r"Chained that holds an mx\.array") as caught:
        backend.run(work)
    assert not held(caught.value)


@pytest.mark.parametrize("shape", ["bare", "list", "dict", "model", "generator"])
def test_an_array_that_is_returned_stays(shape: str, backend: Backend) -> None:
    def work() -> Any:
        import mlx.core as mx
        import mlx.nn as nn

        array = mx.ones(10)
        return {
            "bare": array,
            "list": [1, (array,)],
            "dict": {"a": {"b": array}},
            "model": nn.Linear(4, 4),  # type: ignore[attr-defined]
            "generator": (float(x) for x in array),
        }[shape]

    with pytest.raises(InvalidRequest, match=r"returned an mx\.array"):
        backend.run(work)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_foreign_work_cannot_end_the_thread(kind: type[BaseException], backend: Backend) -> None:
    def work() -> None:
        raise kind("5")

    with pytest.raises(RuntimeError if kind is StopIteration else kind):
        backend.run(work)
    assert backend.run(lambda: 1) == 1
    if kind is StopIteration:  # whose asyncio futures take none

        async def main() -> None:
            with pytest.raises(RuntimeError, match="StopIteration"):
                await backend.arun(work)

        asyncio.run(main())


def test_a_cycle_of_exceptions_ends() -> None:
    """Which `raise ... from` can make, and a walk along it must not follow for ever."""

    def work() -> None:
        first, second = ValueError("first"), ValueError("second")
        first.__cause__, second.__context__ = second, first
        raise first

    value, error = call_user_function(work)
    assert value is None
    assert isinstance(error, ValueError)
