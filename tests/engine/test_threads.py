"""One thread touches MLX; what leaves it holds no array, and what is closed leaves nothing.

Each test runs in this process, whose MLX thread they share, as applications do.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.engine.engine import Engine
from mlx_guarded_llm.engine.foreign import call_foreign
from mlx_guarded_llm.engine.protocol import EngineOptions, Report
from mlx_guarded_llm.engine.thread import mlx_thread
from mlx_guarded_llm.errors import (
    BackendClosed,
    EngineDied,
    GenerationFailed,
    GuardedLLMError,
    InvalidRequest,
    ModelInvalid,
    NonFiniteLogits,
)
from mlx_guarded_llm.testing.tiny import make_scripted_model, make_tiny_model

TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "tiny", context_window=50_000)
    make_tiny_model(folder / "other", architecture="qwen3", seed=1)
    make_tiny_model(folder / "nan", nan=True)
    make_scripted_model(folder / "scripted", TEXT)
    config = make_tiny_model(folder / "mismatched") / "config.json"
    layers = '"num_hidden_layers": 2', '"num_hidden_layers": 3'
    config.write_text(config.read_text().replace(*layers))
    return folder


@pytest.fixture
def backend(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    monkeypatch.setenv("MLX_GUARDED_CACHE_DIR", str(tmp_path))
    with Backend(isolation="thread", load_wait=0.0, timeout=60.0) as backend:
        yield backend


def active_memory() -> int:
    """Bytes that MLX holds; asked on its thread."""

    def ask() -> int:
        import mlx.core as mx

        mx.synchronize()
        gc.collect()
        return mx.get_active_memory()

    with Backend(isolation="thread") as asker:
        return asker.run(ask)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)


def ours() -> Counter[str]:
    """Names of the library's threads, the immortal one left out."""
    names = (thread.name for thread in threading.enumerate())
    return Counter(n for n in names if n.startswith("mlx-guarded") and n != "mlx-guarded-mlx")


# ---- one thread ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        "mlx_thread().add(engine)",
        "mlx_thread().remove(engine)",
        "mlx_thread().generating()",
        "mlx_thread().check()",
        "engine.stop()",
        "engine._handle(None)",
    ],
)
def test_the_engine_is_not_entered_from_another_thread(entry: str, backend: Backend) -> None:
    backend.run(lambda: None)
    engine = backend._dispatcher.machine.host
    with pytest.raises(AssertionError, match="touched from the thread MainThread"):
        eval(entry, {"engine": engine, "mlx_thread": mlx_thread})


def test_everything_of_mlx_happens_on_one_thread(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the callers are, and however many backends there are."""
    entered: set[int] = set()
    backend.run(lambda: None)
    engine: Any = backend._dispatcher.machine.host

    def noted(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            entered.add(threading.get_ident())
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    for name in ("load", "release", "synchronize"):
        noted(type(engine._residency), name)
    from mlx_guarded_llm.engine.batch import ContinuousBatch

    for name in ("__init__", "insert", "remove", "step"):
        noted(ContinuousBatch, name)

    def use(own: Backend) -> None:
        own.generate(str(folder / "tiny"), "Hello", max_tokens=3)
        next(own.stream(str(folder / "other"), "Hello", max_tokens=500))
        own.unload(str(folder / "tiny"))

    with Backend(isolation="thread") as second:
        threads = [threading.Thread(target=use, args=(own,)) for own in (backend, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert entered == {mlx_thread()._thread.ident}


# ---- no array leaves -------------------------------------------------------------------------


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
    engine = {"engine.py", "batch.py", "residents.py", "loading.py", "foreign.py", "thread.py"}
    return kinds & {"array", "generator", "Resident", "Linear"} | files & engine


def test_a_failed_load_holds_nothing(backend: Backend, folder: Path) -> None:
    with pytest.raises(GuardedLLMError) as caught:
        backend.load(str(folder / "mismatched"))
    assert not held(caught.value)


def test_a_load_that_fails_within_mlx_holds_nothing(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.run(lambda: None)
    from mlx_guarded_llm.engine import loading

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
        engine: Any = own._dispatcher.machine.host

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

    value, error = call_foreign(work)
    assert value is None
    assert isinstance(error, ValueError)


# ---- nothing is left -----------------------------------------------------------------------------


def test_fifty_backends_leave_no_thread(folder: Path) -> None:
    active_memory()
    before = ours()
    for n in range(50):
        with Backend(isolation="thread") as backend:
            if n % 5 == 0:
                backend.generate(str(folder / "scripted"), "Hello", max_tokens=2)
    until(lambda: ours() <= before)


def test_a_backend_that_is_dropped_leaves_no_thread(folder: Path) -> None:
    active_memory()
    before = ours()
    for used in (True, False):
        backend = Backend(isolation="thread")
        if used:
            backend.run(lambda: None)
        del backend
    gc.collect()
    until(lambda: ours() <= before)


def test_a_warmer_ends_with_its_backend(folder: Path, tmp_path: Path) -> None:
    before = ours()
    with Backend(isolation="thread", load_wait=1000.0) as backend:
        stream = backend.stream(str(folder / "tiny"), "Hello", max_tokens=40_000)
        next(stream)
        loader = threading.Thread(target=lambda: _closed(backend.load, str(folder / "other")))
        loader.start()
        until(lambda: any(event.kind == "load.deferred" for event in backend.events()))
    loader.join()
    until(lambda: ours() <= before)


def _closed(call: Callable[..., object], *args: Any) -> None:
    with pytest.raises(BackendClosed):
        call(*args)


def test_close_gives_all_memory_back(folder: Path) -> None:
    """With requests running, waiting and half read, and prompts kept in the prefix cache."""
    before = active_memory()
    backend = Backend(isolation="thread", load_wait=1000.0)
    for model in ("scripted", "other"):
        backend.generate(str(folder / model), "Hello " * 20, max_tokens=5)
    stream = backend.stream(str(folder / "tiny"), "Hello", max_tokens=40_000)
    next(stream)
    assert backend.close()
    assert active_memory() <= before + 1024


def test_an_engine_without_mlx_still_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("no mlx here")

    active_memory()
    from mlx_guarded_llm.engine import residents

    monkeypatch.setattr(residents, "device", broken)
    backend = Backend(isolation="thread")
    with pytest.raises(EngineDied, match="no mlx here"):
        backend.run(lambda: 1)
    assert backend.close(timeout=30)


def test_an_engine_whose_device_fails_tells_and_closes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed command buffer shows at a synchronize, between two pieces of work."""
    backend = Backend(isolation="thread", load_wait=0.0)
    stream = backend.stream(str(folder / "tiny"), "Hello", max_tokens=40_000)
    next(stream)
    engine: Any = backend._dispatcher.machine.host

    def fail() -> None:
        raise RuntimeError("[METAL] Command buffer execution failed")

    monkeypatch.setattr(engine._residency, "synchronize", fail)
    with pytest.raises(EngineDied, match="Command buffer"):
        backend.run(lambda: 1)
    with pytest.raises(EngineDied):
        for _ in stream:
            pass
    with pytest.raises(EngineDied):
        backend.generate(str(folder / "tiny"), "Hello")
    assert backend.close(timeout=30)


def test_an_engine_is_closed_once_for_all(folder: Path) -> None:
    """Commands after its end are answered, and each `close` is."""
    reports: list[Report] = []
    engine = Engine(reports.append, EngineOptions())
    engine.close()
    engine.close()
    until(lambda: [type(report).__name__ for report in reports].count("Stopped") == 2)


# ---- many callers ------------------------------------------------------------------------------


def test_fifty_callers_at_once(backend: Backend, folder: Path) -> None:
    texts: list[str] = []
    start = threading.Barrier(50)

    def ask(n: int) -> None:
        start.wait(60)
        model = "scripted" if n % 2 else "tiny"
        result = backend.generate(str(folder / model), f"Hello {n}", max_tokens=30)
        texts.append(result.text if n % 2 else TEXT)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [TEXT] * 50


def test_streams_dropped_wherever_the_collector_runs(backend: Backend, folder: Path) -> None:
    """On the dispatcher's thread, on the MLX thread, within a caller's lock: none waits."""
    model = str(folder / "tiny")

    def litter() -> None:
        for _ in range(3):
            stream: Any = backend.stream(model, "Hello", max_tokens=40_000)
            stream.cycle = stream  # only the cyclic collector finds it

    for collect in (
        lambda: backend.run(gc.collect),
        lambda: backend._dispatcher.call(gc.collect).result(60),
        gc.collect,
    ):
        litter()
        collect()
        until(lambda: not any(m.active or m.waiting for m in backend.models()))
    assert backend.generate(str(folder / "scripted"), "Hello").text == TEXT


def test_the_collector_runs_within_every_put(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment for a stream's end: while the backend's own thread posts."""
    post = backend._dispatcher.post
    depth = threading.local()

    def posting(call: Callable[[], None]) -> None:
        if not getattr(depth, "inside", False):
            depth.inside = True
            gc.collect()
            depth.inside = False
        post(call)

    monkeypatch.setattr(backend._dispatcher, "post", posting)
    for _ in range(3):
        stream: Any = backend.stream(str(folder / "tiny"), "Hello", max_tokens=40_000)
        next(stream)
        stream.cycle = stream
        del stream
    assert backend.generate(str(folder / "scripted"), "Hello").text == TEXT
    until(lambda: not any(m.active for m in backend.models()))
