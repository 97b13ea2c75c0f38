"""Calling a user's function on the MLX thread: `backend.run(fn)`."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from types import GeneratorType
from typing import Any

from ..errors import InvalidRequest


def call_user_function(fn: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Call a user's function. Returns its value, or what it raised.

    The traceback of an exception is removed, since its frames may hold arrays of this thread; its
    text is kept as a note.
    """
    try:
        value = fn()
    except BaseException as error:  # even a SystemExit, which would end the thread
        return None, _portable(error)
    if _holds_array(value):
        return None, InvalidRequest(
            "the function returned an mx.array or a generator, for the MLX thread only.",
            hint="Return plain values: array.tolist(), array.item() or numpy.array(array).",
        )
    return value, None


def _portable(error: BaseException) -> BaseException:
    """An error that another thread may hold and raise: this one, or one in its place."""
    note = "On the MLX thread:\n" + "".join(traceback.format_exception(error))
    family = list(_family(error))
    if any(_holds_array((member.args, vars(member))) for member in family):
        error = InvalidRequest(
            f"the function raised a {type(error).__name__} that holds an mx.array, "
            "which only the MLX thread may touch."
        )
    elif isinstance(error, StopIteration):
        # A future of asyncio does not take one. A generator converts it in the same way.
        error = RuntimeError("the function raised StopIteration")
    for member in family:
        member.__traceback__ = None
    error.add_note(note)
    return error


def _family(error: BaseException) -> Iterator[BaseException]:
    """An error, its causes and contexts, and the members of exception groups."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        member = waiting.pop()
        if member is not None and id(member) not in seen:
            seen.add(id(member))
            yield member
            waiting += [member.__cause__, member.__context__]
            if isinstance(member, BaseExceptionGroup):
                waiting += member.exceptions


def _holds_array(value: Any, depth: int = 8) -> bool:
    """Whether a value is or visibly contains an array, or a generator, which may make some."""
    import mlx.core as mx

    if isinstance(value, (mx.array, GeneratorType)):
        return True
    if depth and isinstance(value, Mapping):
        return any(_holds_array(v, depth - 1) for v in value.values())
    if depth and isinstance(value, (list, tuple, set)):
        return any(_holds_array(v, depth - 1) for v in value)
    return False
