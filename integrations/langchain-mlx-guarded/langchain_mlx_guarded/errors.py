"""Errors that belong to both libraries.

Each error of `mlx_guarded_llm.errors` has a twin here of the same name, which is also the
fitting one of `langchain_core.exceptions`. So `except ContextOverflow` of ours and
`except ContextOverflowError` of LangChain's catch the same thing, and `is_retryable` tells
LangChain's retries what `retryable` tells ours:

    try:
        chat.invoke(messages)
    except langchain_core.exceptions.ModelError as error:
        error.guard         # what was tried
        error.is_retryable  # False once the attempts are used up
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core import exceptions as theirs

from mlx_guarded_llm import errors as ours

_COUNTERPARTS: dict[type[ours.GuardedLLMError], type[theirs.ModelError]] = {
    ours.GuardedLLMError: theirs.ModelError,
    ours.InvalidRequest: theirs.ModelInvalidRequestError,
    ours.ContextOverflow: theirs.ContextOverflowError,
    ours.ModelNotFound: theirs.ModelNotFoundError,
    ours.PullFailed: theirs.ModelConnectionError,
    ours.LoadFailed: theirs.ModelAPIError,
    ours.QueueFull: theirs.ModelRateLimitError,
    ours.LoadDeferredTimeout: theirs.ModelTimeoutError,
    ours.RequestTimeout: theirs.ModelTimeoutError,
    ours.GenerationFailed: theirs.ModelAPIError,
    ours.EngineDied: theirs.ModelAPIError,
    ours.BackendClosed: theirs.ModelConnectionError,
}


def _twin(kind: type[ours.GuardedLLMError]) -> type[ours.GuardedLLMError]:
    other = next(_COUNTERPARTS[base] for base in kind.__mro__ if base in _COUNTERPARTS)
    body = {"__module__": __name__, "__doc__": kind.__doc__, "is_retryable": kind.retryable}
    return type(kind.__name__, (kind, other), body)


_TWINS = {
    kind: _twin(kind)
    for kind in vars(ours).values()
    if isinstance(kind, type) and issubclass(kind, ours.GuardedLLMError)
}
globals().update({twin.__name__: twin for twin in _TWINS.values()})  # where pickle looks


def twin_of(error: ours.GuardedLLMError) -> ours.GuardedLLMError:
    """The same error as one of both libraries; it keeps its traceback and attributes."""
    kind = next(_TWINS[base] for base in type(error).__mro__ if base in _TWINS)
    reduced: Any = error.__reduce__()
    rebuild, (_, args, state) = reduced
    twin: ours.GuardedLLMError = rebuild(kind, args, state)
    return twin.with_traceback(error.__traceback__)


@contextmanager
def framework_errors() -> Iterator[None]:
    """Within it, an error of ours is raised as its twin, with the same cause."""
    try:
        yield
    except ours.GuardedLLMError as error:
        raise twin_of(error) from error.__cause__
