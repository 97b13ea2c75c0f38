"""One thread touches MLX, wherever the callers are and however many."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.backend.loop import Blame
from mlx_guarded_llm.engine.thread import mlx_thread
from tests.engine._backend import TEXT, wait_until

# ---- one thread ----------------------------------------------------------------------


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
    engine = backend._dispatcher.supervisor.engine
    with pytest.raises(AssertionError, match="touched from the thread MainThread"):
        eval(entry, {"engine": engine, "mlx_thread": mlx_thread})


def test_everything_of_mlx_happens_on_one_thread(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the callers are, and however many backends there are."""
    entered: set[int] = set()
    backend.run(lambda: None)
    engine: Any = backend._dispatcher.supervisor.engine

    def noted(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            entered.add(threading.get_ident())
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    for name in ("load", "release", "synchronize"):
        noted(type(engine._residency), name)
    from mlx_guarded_llm.engine.decode.batch import ContinuousBatch

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


# ---- many callers --------------------------------------------------------------------


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
        lambda: backend._dispatcher.call(gc.collect).wait(60, give_up=lambda: None),
        gc.collect,
    ):
        litter()
        collect()
        wait_until(lambda: not any(m.active or m.waiting for m in backend.models()))
    assert backend.generate(str(folder / "scripted"), "Hello").text == TEXT


def test_the_collector_runs_within_every_put(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment for a stream's end: while the backend's own thread posts."""
    post = backend._dispatcher.post
    depth = threading.local()

    def posting(call: Callable[[], None], blame: Blame | None = None) -> None:
        if not getattr(depth, "inside", False):
            depth.inside = True
            gc.collect()
            depth.inside = False
        post(call, blame)

    monkeypatch.setattr(backend._dispatcher, "post", posting)
    for _ in range(3):
        stream: Any = backend.stream(str(folder / "tiny"), "Hello", max_tokens=40_000)
        next(stream)
        stream.cycle = stream
        del stream
    assert backend.generate(str(folder / "scripted"), "Hello").text == TEXT
    wait_until(lambda: not any(m.active for m in backend.models()))
