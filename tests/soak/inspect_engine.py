"""What the soak sees and breaks inside of an engine, wherever that runs."""

from __future__ import annotations

import functools
import gc
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from mlx_guarded_llm import Backend
from mlx_guarded_llm.engine import observer

T = TypeVar("T")


def in_engine(backend: Backend, look: Callable[[Any], T], *, label: str) -> T:
    """Call `look` with the engine of a backend, on the MLX thread, under the guard."""
    if backend.isolation == "process":
        return backend.run(functools.partial(_with_the_only, look), label=label)
    return backend.run(lambda: look(backend._dispatcher.supervisor.engine), label=label)


def _with_the_only(look: Callable[[Any], T]) -> T:
    from mlx_guarded_llm.engine.engine import Engine
    from mlx_guarded_llm.engine.thread import mlx_thread

    (engine,) = [worker for worker in mlx_thread()._steppables if isinstance(worker, Engine)]
    return look(engine)


def active_memory(engine: Any) -> int:
    """Bytes that MLX holds."""
    import mlx.core as mx

    gc.collect()
    return mx.get_active_memory()


def unfinished(engine: Any) -> dict[str, list[str]]:
    """The requests that the engine still knows."""
    return {
        "generations": list(engine._generations),
        "prepared": list(engine._preparer._prepared),
    }


def kept(engine: Any) -> dict[str, int]:
    """How many objects there are that belong to a request, by their class."""
    from mlx_guarded_llm.engine.output.embedding import PreparedTexts
    from mlx_guarded_llm.engine.output.generation import Generation
    from mlx_guarded_llm.engine.prompt.prepare import PreparedRequest

    gc.collect()
    kinds = (Generation, PreparedRequest, PreparedTexts)
    return Counter(type(o).__name__ for o in gc.get_objects() if isinstance(o, kinds))


def witnessed(engine: Any) -> dict[str, int]:
    """How many sections of each kind the witness of its process has seen."""
    return dict(getattr(observer.process_observer(), "seen", {}))


def break_a_step(engine: Any) -> None:
    """Have the next step of some batch fail."""
    for resident in list(engine._residents.values())[:1]:
        resident.decoder.step = _fail


def _fail() -> None:
    raise RuntimeError("[soak] an injected failure of a step")
