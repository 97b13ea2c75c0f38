"""How errors are reported over HTTP: one table for every API.

Each API only formats the result in its own shape; see `api.Api.error`.
"""

from __future__ import annotations

import http
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import errors
from ..errors import GuardedLLMError
from .guard import expected_headers, guard_headers

RETRY_AFTER = 5  # seconds, where it is unknown

# Status and code of each class; a subclass without an entry has those of its nearest base.
_KINDS: Mapping[type[GuardedLLMError], tuple[int, str]] = {
    GuardedLLMError: (500, "internal_error"),
    errors.InvalidRequest: (400, "invalid_request"),
    errors.ContextOverflow: (400, "context_length_exceeded"),
    errors.NoChatTemplate: (400, "no_chat_template"),
    errors.InvalidGrammar: (400, "invalid_schema"),
    errors.GrammarUnavailable: (400, "grammar_unavailable"),
    errors.ModelError: (500, "model_error"),
    errors.ModelNotFound: (404, "model_not_found"),
    errors.ModelInvalid: (500, "model_invalid"),
    errors.ModelUnsupported: (400, "model_unsupported"),
    errors.PullFailed: (502, "pull_failed"),
    errors.LoadFailed: (503, "load_failed"),
    errors.ModelQuarantined: (503, "model_quarantined"),
    errors.MemoryRefused: (507, "insufficient_memory"),
    errors.QueueFull: (429, "queue_full"),
    errors.LoadDeferredTimeout: (503, "load_deferred"),
    errors.RequestTimeout: (504, "timeout"),
    errors.RequestCancelled: (499, "cancelled"),
    errors.GenerationFailed: (500, "generation_failed"),
    errors.EngineDied: (503, "engine_died"),
    errors.BackendClosed: (503, "shutting_down"),
    errors.ServerUnavailable: (503, "server_unavailable"),
    errors.ServerRefused: (502, "server_refused"),
    errors.ServerAlreadyRunning: (409, "server_already_running"),
    errors.AttemptsExhausted: (503, "attempts_exhausted"),
    errors.FallbackRefused: (502, "fallback_refused"),
    errors.DegradedAnswer: (502, "degraded_answer"),
}

# Every status a client may get instead of an answer.
STATUSES = tuple(
    sorted({status for status, _ in _KINDS.values()} | {401, 403, 404, 405, 408, 413, 415})
)


@dataclass(eq=False)
class HTTPError(Exception):
    """An error as it is reported to a client.

    Attributes:
        status: the HTTP status.
        code: identifies the error for programs.
        message: what happened.
        hint: what to do, or "".
        param: the field of the body that is wrong, or "".
        headers: of the response.
        details: further JSON values, such as token counts or the refused answer.
    """

    status: int
    code: str
    message: str
    hint: str = ""
    param: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


def refused(message: str, *, param: str = "", hint: str = "", code: str = "") -> HTTPError:
    """A request that is invalid, or asks for something unsupported."""
    return HTTPError(400, code or "invalid_request", message, hint=hint, param=param)


def too_large(name: str, size: int | str, most: int, *, status: int = 400) -> HTTPError:
    """A request that exceeds one of the limits."""
    return HTTPError(
        status,
        "too_large",
        f"{name} is {size}; {most:,} are the most." if size else f"{name}: {most:,} are the most.",
        hint=f"The server's setting limits.{name} says so.",
        param=name,
    )


def retry_headers(seconds: float | None) -> dict[str, str]:
    """When to ask again. Whole seconds, because the header has no others."""
    return {"retry-after": str(max(1, math.ceil(RETRY_AFTER if seconds is None else seconds)))}


def http_error(error: BaseException) -> HTTPError:
    """An exception as it is reported to a client; unexpected ones without any details."""
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, GuardedLLMError):
        return _told(error)
    return HTTPError(
        500,
        "internal_error",
        "the server failed unexpectedly.",
        hint="See the log of the server.",
    )


def _told(error: GuardedLLMError) -> HTTPError:
    meant = error
    last = error.__cause__ if isinstance(error, errors.AttemptsExhausted) else None
    if isinstance(last, GuardedLLMError) and not isinstance(error, errors.DeadlineExceeded):
        meant = last  # the message says that all attempts failed
    status, code = status_and_code(type(meant))
    headers: dict[str, str] = {}
    if status in (429, 503) and meant.retryable:  # nothing else passes by waiting
        headers |= retry_headers(getattr(meant, "retry_after", None))
    if isinstance(meant, errors.QueueFull) and meant.expected_wait is not None:
        headers |= expected_headers(meant.expected_wait)
    if not error.retryable or error.guard is not None:
        headers["x-should-retry"] = "false"
    details: dict[str, Any] = {}
    for name in ("prompt_tokens", "context_window", "needed_bytes", "budget_bytes"):
        if hasattr(error, name):
            details[name] = getattr(error, name)
    if isinstance(error, errors.AnswerRefused):
        details["answer"] = {
            "text": error.answer.text,
            "reasoning": error.answer.reasoning,
            "finish_reason": error.answer.finish_reason,
        }
    if error.guard is not None:
        details["guard"] = error.guard.as_dict()
        headers |= guard_headers(error.guard)
    message, hint = error.message, error.hint
    if isinstance(error, errors.AnswerRefused):
        setting = "on_fallback" if isinstance(error, errors.FallbackRefused) else "on_degraded"
        hint = f'It is the field `answer`; {setting} = "mark" in the settings returns it, marked.'
    if isinstance(error, errors.ContextOverflow):
        message = (
            f"This model's maximum context length is {error.context_window} tokens, but the "
            f"prompt has {error.prompt_tokens}: prompt is too long."
        )
    return HTTPError(status, code, message, hint=hint, headers=headers, details=details)


def status_and_code(error: type[GuardedLLMError]) -> tuple[int, str]:
    """The HTTP status and the code of a class of error."""
    return next(_KINDS[kind] for kind in error.__mro__ if kind in _KINDS)


def phrase(status: int) -> str:
    """The standard phrase of a status."""
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Error"
