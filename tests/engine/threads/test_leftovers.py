"""A backend that is closed leaves nothing: no thread and no memory."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.engine.engine import Engine
from mlx_guarded_llm.engine.protocol import EngineOptions, Report
from mlx_guarded_llm.errors import BackendClosed, EngineDied
from tests.engine._backend import wait_until
from tests.engine.threads.conftest import active_memory


def ours() -> Counter[str]:
    """Names of the library's threads, the immortal one left out."""
    names = (thread.name for thread in threading.enumerate())
    return Counter(n for n in names if n.startswith("mlx-guarded") and n != "mlx-guarded-mlx")


def test_fifty_backends_leave_no_thread(folder: Path) -> None:
    active_memory()
    before = ours()
    for n in range(50):
        with Backend(isolation="thread") as backend:
            if n % 5 == 0:
                backend.generate(str(folder / "scripted"), "Hello", max_tokens=2)
    wait_until(lambda: ours() <= before)


def test_a_backend_that_is_dropped_leaves_no_thread(folder: Path) -> None:
    active_memory()
    before = ours()
    for used in (True, False):
        backend = Backend(isolation="thread")
        if used:
            backend.run(lambda: None)
        del backend
    gc.collect()
    wait_until(lambda: ours() <= before)


def test_a_warmer_ends_with_its_backend(folder: Path, tmp_path: Path) -> None:
    before = ours()
    with Backend(isolation="thread", load_wait=1000.0) as backend:
        stream = backend.stream(str(folder / "tiny"), "Hello", max_tokens=40_000)
        next(stream)
        loader = threading.Thread(target=lambda: _closed(backend.load, str(folder / "other")))
        loader.start()
        wait_until(lambda: any(event.kind == "load.deferred" for event in backend.events()))
    loader.join()
    wait_until(lambda: ours() <= before)


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
    from mlx_guarded_llm.engine.residency import residents

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
    engine: Any = backend._dispatcher.supervisor.engine

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
    wait_until(lambda: [type(report).__name__ for report in reports].count("Stopped") == 2)
