"""What MLX keeps of the device's memory: the wired limit, and its cache of free buffers.

Both belong to the whole process, so this module is the only one that sets them.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import mlx.core as mx

from ...errors import InvalidRequest

WiredMemory = int | Literal["recommended"] | None


def wire_memory(wanted: WiredMemory, device: Mapping[str, Any]) -> int:
    """Let Metal keep this much of what models use in memory, for good.

    Call it when an engine starts: the limit must not change while something is in flight.

    Args:
        wanted: bytes, or what the device recommends; None leaves the limit alone.
        device: what `mx.device_info()` returned.

    Returns:
        The limit in bytes; 0 where it was left alone. Only Metal has one.

    Raises:
        InvalidRequest: it is more than the device allows.
    """
    most = int(device.get("max_recommended_working_set_size") or 0)
    if wanted is None or not most:
        return 0
    limit = most if wanted == "recommended" else wanted
    if limit > most:
        raise InvalidRequest(
            f"wired_memory is {limit} bytes; this device allows {most}.",
            hint='wired_memory="recommended" takes the most.',
        )
    mx.synchronize()
    mx.set_wired_limit(limit)
    return limit


@contextmanager
def wired_limit_kept() -> Iterator[None]:
    """Keep mlx-lm from raising the wired limit, which it does for each batch that it makes.

    Another batch may have work in flight then, and two that overlap restore wrong values.
    """
    # Not `mlx_lm.generate`: that is a function of the same name.
    module: Any = importlib.import_module("mlx_lm.generate")
    real = module.maybe_set_recommended_wired_limit
    module.maybe_set_recommended_wired_limit = lambda: None
    try:
        yield
    finally:
        module.maybe_set_recommended_wired_limit = real


def clear_cache() -> None:
    """Give back the buffers that MLX keeps for later arrays."""
    mx.clear_cache()


def release() -> None:
    """Free what was just dropped. Call it when no reference is left."""
    mx.synchronize()
    gc.collect()
    clear_cache()
