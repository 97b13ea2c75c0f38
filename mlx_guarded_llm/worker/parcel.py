"""Functions of users on their way to the worker, and what they come to on the way back."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..engine.protocol import JobEnded
from ..errors import GuardedLLMError, InvalidRequest

MAX_BYTES = 1024**3


@dataclass(frozen=True)
class Parcel:
    """A function, packed. Called where MLX is, it unpacks and calls it."""

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
class Packed:
    """What a function returned, packed. See `unpack`."""

    data: bytes


def pack(fn: Callable[[], Any]) -> Parcel:
    """Pack a function with what it refers to. Lambdas and local functions too.

    Raises:
        InvalidRequest: it, or something that it refers to, belongs to this process.
    """
    try:
        data = _dumps(fn)
    except Exception as error:
        raise InvalidRequest(
            f"the function cannot go to the worker ({_told(error)}).",
            hint="It must not refer to locks, open files, sockets or a Backend; make them in the "
            'function, or use Backend(isolation="thread").',
        ) from None
    if len(data) > MAX_BYTES:
        raise InvalidRequest(
            f"the function refers to {len(data)} bytes; {MAX_BYTES} are the most.",
            hint="Have it read large data itself.",
        )
    return Parcel(data)


def unpack(value: Any) -> Any:
    """The value of a function, whether it is packed or not.

    Raises:
        InvalidRequest: it cannot be made in this process.
    """
    if not isinstance(value, Packed):
        return value
    try:
        return pickle.loads(value.data)
    except Exception as error:
        raise InvalidRequest(
            f"what the function returned cannot be unpacked ({_told(error)}).",
            hint="Return plain values.",
        ) from None


def pack_outcome(report: JobEnded) -> JobEnded:
    """In the worker: make what a function came to fit for the way."""
    if report.error is not None:
        return replace(report, error=_PackedError(*_pack_error(report.error)))
    if report.value is None:
        return report
    try:
        data = _dumps(report.value)
    except Exception as error:
        told = f"what the function returned cannot leave the worker ({_told(error)})."
    else:
        if len(data) <= MAX_BYTES:
            return replace(report, value=Packed(data))
        told = f"the function returned {len(data)} bytes; {MAX_BYTES} are the most."
    refused = InvalidRequest(told, hint="Return plain values: numbers, text, lists, numpy arrays.")
    return replace(report, value=None, error=refused)


def unpack_outcome(report: JobEnded) -> JobEnded:
    """In the parent: the exception as it was raised. The value stays packed."""
    if not isinstance(report.error, _PackedError):
        return report
    data, told = report.error.args
    try:
        error = pickle.loads(data)
    except Exception:
        error = None
    if not isinstance(error, BaseException):
        error = GuardedLLMError(told)
    return replace(report, error=error)


class _PackedError(Exception):
    """An exception that is packed: its bytes, and what to say if they cannot be read."""


def _pack_error(error: BaseException) -> tuple[bytes, str]:
    told = f"the function raised {_told(error)}, which cannot leave the worker."
    notes = getattr(error, "__notes__", [])
    plain = GuardedLLMError("\n".join([told, *notes]))
    try:
        data = _dumps(error)
        pickle.loads(data)  # some go one way only: they want more than their args
    except Exception:
        return _dumps(plain), str(plain)
    return data, str(plain)


def _dumps(value: Any) -> bytes:
    import cloudpickle  # type: ignore[import-untyped]  # late: few need it

    data: bytes = cloudpickle.dumps(value, protocol=5)
    return data


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
