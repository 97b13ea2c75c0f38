"""Errors that are not the backend's own.

Neither is a `ValueError`: LlamaIndex's refining synthesizer, which most query engines
use, catches those and answers "Empty Response".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlx_guarded_llm.errors import GuardedLLMError, InvalidRequest


class NoToolCall(GuardedLLMError):
    """A tool call was asked for, and the answer has none."""


class RequestRefused(GuardedLLMError):
    """A prediction could not be asked for; `__cause__` is the `InvalidRequest` that tells why.

    The prompt may be too long for the model, or an option wrong.
    """


@contextmanager
def not_as_value_error() -> Iterator[None]:
    """Raise `RequestRefused` from an `InvalidRequest`, which is a `ValueError`."""
    try:
        yield
    except InvalidRequest as error:
        refused = RequestRefused(error.message, hint=error.hint)
        refused.guard = error.guard
        raise refused from error
