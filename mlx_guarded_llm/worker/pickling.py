"""Users' functions on their way to the worker, and their results on the way back."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..engine.protocol import JobEnded
from ..errors import GuardedLLMError, InvalidRequest

MAX_BYTES = 1024**3


@dataclass(frozen=True)
class PackedFunction:
    """A pickled function. Calling this, where MLX is, unpickles the function and calls it."""

    data: bytes

    def __call__(self) -> Any:
        try:
            fn = pickle.loads(self.data)
        except Exception as error:
            raise InvalidRequest(
                f"the function cannot be unpacked in the worker ({type(error).__name__}: {error}).",
                hint="What it uses must be importable there; define it in the function itself.",
            ) from None
        return fn()


@dataclass(frozen=True)
class PackedValue:
    """The pickled result of a function. See `unpack`."""

    data: bytes


def pack(fn: Callable[[], Any]) -> PackedFunction:
    """Pickle a function with everything it refers to; lambdas and local functions too.

    Raises:
        InvalidRequest: it, or something it refers to, cannot leave this process.
    """
    try:
        data = _dumps(fn)
    except Exception as error:
        raise InvalidRequest(
            f"the function cannot go to the worker ({_text(error)}).",
            hint="It must not refer to locks, open files, sockets or a Backend; make them in the "
            'function, or use Backend(isolation="thread").',
        ) from None
    if len(data) > MAX_BYTES:
        raise InvalidRequest(
            f"the function refers to {len(data)} bytes; {MAX_BYTES} are the most.",
            hint="Have it read large data itself.",
        )
    return PackedFunction(data)


def unpack(value: Any) -> Any:
    """The result of a function, whether it is pickled or not.

    Raises:
        InvalidRequest: it cannot be unpickled in this process.
    """
    if not isinstance(value, PackedValue):
        return value
    try:
        return pickle.loads(value.data)
    except Exception as error:
        raise InvalidRequest(
            f"what the function returned cannot be unpacked ({_text(error)}).",
            hint="Return plain values.",
        ) from None


def pack_outcome(report: JobEnded) -> JobEnded:
    """In the worker: pickle what a function returned or raised."""
    if report.error is not None:
        return replace(report, error=_PackedError(*_pack_error(report.error)))
    if report.value is None:
        return report
    try:
        data = _dumps(report.value)
    except Exception as error:
        text = f"what the function returned cannot leave the worker ({_text(error)})."
    else:
        if len(data) <= MAX_BYTES:
            return replace(report, value=PackedValue(data))
        text = f"the function returned {len(data)} bytes; {MAX_BYTES} are the most."
    refused = InvalidRequest(text, hint="Return plain values: numbers, text, lists, numpy arrays.")
    return replace(report, value=None, error=refused)


def unpack_outcome(report: JobEnded) -> JobEnded:
    """In the parent: the exception as it was raised. The result stays pickled."""
    if not isinstance(report.error, _PackedError):
        return report
    data, text = report.error.args
    try:
        error = pickle.loads(data)
    except Exception:
        error = None
    if not isinstance(error, BaseException):
        error = GuardedLLMError(text)
    return replace(report, error=error)


class _PackedError(Exception):
    """A pickled exception: its bytes, and what to say if they cannot be unpickled."""


def _pack_error(error: BaseException) -> tuple[bytes, str]:
    text = f"the function raised {_text(error)}, which cannot leave the worker."
    notes = getattr(error, "__notes__", [])
    plain = GuardedLLMError("\n".join([text, *notes]))
    try:
        data = _dumps(error)
        pickle.loads(data)  # some cannot be unpickled: they need more than their args
    except Exception:
        return _dumps(plain), str(plain)
    return data, str(plain)


def _dumps(value: Any) -> bytes:
    import cloudpickle  # type: ignore[import-untyped]  # late: few need it

    data: bytes = cloudpickle.dumps(value, protocol=5)
    return data


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
