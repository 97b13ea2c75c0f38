"""What the chaos plants in the worker, by `backend.run`: the next step, load or unload there
fails in some way that no signal from outside could time so well.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

HANG = 3600.0  # seconds, which the watchdog shall not wait for


def _condemn() -> None:
    raise RuntimeError("[METAL] Command buffer execution failed: planted by the chaos")


FAULTS: dict[str, Callable[[], None]] = {
    "os.abort": os.abort,
    "os._exit": lambda: os._exit(3),
    "SIGSEGV": lambda: signal.raise_signal(signal.SIGSEGV),
    "MLX error": _condemn,
    "standstill": lambda: time.sleep(HANG),
}


def plant(site: str, fault: str, after: int) -> None:
    """Have a fault happen at the end of a piece of work, or at once.

    Args:
        site: "step", "load", "unload" or "run", which is now.
        fault: one of `FAULTS`.
        after: number of such pieces that succeed before it.
    """
    from mlx_guarded_llm.engine.residency import residents

    fail = FAULTS[fault]
    if site == "step":
        _sabotage(residents.Resident, "step", fail, after)
    elif site == "load":
        _sabotage(residents.Residency, "load", fail, after)
    elif site == "unload":
        _sabotage(residents.Residency, "release", fail, after)
    else:
        fail()


def _sabotage(owner: type, name: str, fail: Callable[[], None], after: int) -> None:
    original = getattr(owner, name)
    left = after

    @functools.wraps(original)
    def sabotaged(*args: Any, **options: Any) -> Any:
        nonlocal left
        value = original(*args, **options)
        left -= 1
        if left < 0:
            fail()
        return value

    setattr(owner, name, sabotaged)


def what_is_left() -> tuple[int, dict[str, int]]:
    """After everything has ended: bytes that MLX holds, and objects of requests by kind."""
    import mlx.core as mx

    from mlx_guarded_llm.engine.output.embedding import PreparedTexts
    from mlx_guarded_llm.engine.output.generation import Generation
    from mlx_guarded_llm.engine.prompt.prepare import PreparedRequest

    gc.collect()
    mx.clear_cache()
    kinds = (Generation, PreparedRequest, PreparedTexts)
    kept = Counter(type(o).__name__ for o in gc.get_objects() if isinstance(o, kinds))
    return mx.get_active_memory(), dict(kept)


def add(numbers: list[int]) -> int:
    """Foreign work that can be checked."""
    import mlx.core as mx

    return int(mx.array(numbers).sum().tolist())  # type: ignore[arg-type]
