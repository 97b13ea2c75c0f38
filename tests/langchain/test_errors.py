"""Errors of both libraries at once."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from langchain_core import exceptions as theirs

from langchain_mlx_guarded.errors import framework_errors, twin_of
from mlx_guarded_llm import errors as ours

KINDS = [
    kind
    for kind in vars(ours).values()
    if isinstance(kind, type) and issubclass(kind, ours.GuardedLLMError)
]
EXTRA: dict[str, dict[str, Any]] = {
    "ContextOverflow": {"prompt_tokens": 9, "context_window": 8},
    "MemoryRefused": {"needed_bytes": 9, "budget_bytes": 8},
    "ModelQuarantined": {"model": "m", "deaths": 3, "stderr": "why"},
    "LoadDeferredTimeout": {"model": "m", "waited": 1.0, "held_by": [("r", "m")]},
}


def make(kind: type[ours.GuardedLLMError]) -> ours.GuardedLLMError:
    if issubclass(kind, ours.AnswerRefused):
        error = kind.__new__(kind)
        error.args = ("it happened.", "Do this.")
        error.__dict__.update(message="it happened.", hint="Do this.", answer="the answer")
        return error
    return kind("it happened.", hint="Do this.", **EXTRA.get(kind.__name__, {}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_is_of_both_libraries_and_says_the_same(kind: type[ours.GuardedLLMError]) -> None:
    error = make(kind)
    error.guard = "where it came from"  # type: ignore[assignment]
    twin = twin_of(error)
    assert isinstance(twin, kind)
    assert isinstance(twin, theirs.ModelError)
    assert twin.is_retryable is kind.retryable
    assert type(twin).__name__ == kind.__name__
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)
    for other in (pickle.loads(pickle.dumps(twin)), copy.copy(twin)):
        assert type(other) is type(twin)
        assert vars(other) == vars(error)
        assert str(other) == str(error)


@pytest.mark.parametrize(
    ("ours_name", "theirs_name"),
    [
        ("InvalidRequest", "ModelInvalidRequestError"),
        ("NoChatTemplate", "ModelInvalidRequestError"),
        ("ContextOverflow", "ContextOverflowError"),
        ("ModelNotFound", "ModelNotFoundError"),
        ("QueueFull", "ModelRateLimitError"),
        ("RequestTimeout", "ModelTimeoutError"),
        ("DeadlineExceeded", "ModelTimeoutError"),
        ("LoadDeferredTimeout", "ModelTimeoutError"),
        ("EngineDied", "ModelAPIError"),
        ("GenerationFailed", "ModelAPIError"),
        ("BackendClosed", "ModelConnectionError"),
    ],
)
def test_each_condition_has_langchains_name(ours_name: str, theirs_name: str) -> None:
    twin = twin_of(make(getattr(ours, ours_name)))
    assert isinstance(twin, getattr(theirs, theirs_name))


def test_what_is_used_up_is_not_retryable() -> None:
    for kind in (ours.AttemptsExhausted, ours.DeadlineExceeded, ours.FallbackRefused):
        assert not getattr(twin_of(make(kind)), "is_retryable")  # noqa: B009 - not typed


def test_the_cause_and_the_traceback_are_kept() -> None:
    cause = ours.EngineDied("it aborted.")
    with pytest.raises(ours.AttemptsExhausted) as caught, framework_errors():
        raise ours.AttemptsExhausted("no answer.") from cause
    assert caught.value.__cause__ is cause
    assert isinstance(caught.value, theirs.ModelError)


def test_an_error_of_the_users_own_kind_becomes_the_nearest() -> None:
    class Odd(ours.QueueFull):
        pass

    twin = twin_of(Odd("full."))
    assert isinstance(twin, ours.QueueFull)
    assert isinstance(twin, theirs.ModelRateLimitError)


def test_other_errors_pass_through() -> None:
    with pytest.raises(KeyError), framework_errors():
        raise KeyError("x")
