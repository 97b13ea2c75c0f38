"""Other people's MLX code on the MLX thread."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InvalidRequest


def call_foreign(fn: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Call a user's function. Returns its value, or what it raised.

    An exception loses its traceback, whose frames may hold arrays of this thread; the
    text of it is kept as a note.
    """
    try:
        value = fn()
    except Exception as error:  # noqa: BLE001 - it goes to the caller as it is
        error.add_note("On the MLX thread:\n" + traceback.format_exc())
        return None, _without_frames(error)
    if _holds_array(value):
        return None, InvalidRequest(
            "the function returned an mx.array, which only the MLX thread may touch.",
            hint="Return plain values: array.tolist(), array.item() or numpy.array(array).",
        )
    return value, None


def _without_frames(error: BaseException) -> BaseException:
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    return error


def _holds_array(value: Any, depth: int = 8) -> bool:
    import mlx.core as mx

    if isinstance(value, mx.array):
        return True
    if depth and isinstance(value, Mapping):
        return any(_holds_array(v, depth - 1) for v in value.values())
    if depth and isinstance(value, (list, tuple, set)):
        return any(_holds_array(v, depth - 1) for v in value)
    return False
