"""What OpenAI's client raises, as errors of this library."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import openai

from ...errors import (
    ContextOverflow,
    GuardedLLMError,
    ModelNotFound,
    QueueFull,
    ServerRefused,
    ServerUnavailable,
    retry_after,
)
from ..reading import member

_SHOWN = 400  # characters of what a server says
_NUMBER = re.compile(r"\d[\d,]*")
_PASSING = (408, 409, 425)  # statuses below 500 after which the same request may succeed
# Codes of errors that come as events of a stream, after which it may not.
_FINAL = ("insufficient_quota", "invalid_", "_refused", "degraded_answer", "unsupported_")
_HINTS = {
    401: "Check its key: `key`, or the variable that `key_env` names.",
    403: "Check what its key may use.",
    404: "Check the name of the model, and that the address ends as the server's API does (/v1).",
}


def is_clients(error: Exception) -> bool:
    """Whether the client raised it: because of what came, or did not come, from the server."""
    known = (openai.OpenAIError, json.JSONDecodeError, UnicodeError)
    return isinstance(error, known) or _is_of_http(error)


def _is_of_http(error: Exception) -> bool:
    """Whether it is of the HTTP library below, which one depends on the client's version."""
    return type(error).__module__.partition(".")[0].startswith("httpx")


def as_ours(error: Exception, who: str, *, key: str | None, text: str = "") -> GuardedLLMError:
    """The error that callers get.

    Args:
        error: of the client.
        who: the server and its model.
        key: is never part of the message, whatever the server says.
        text: what had come of the answer.
    """
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, who, key, text)
    raw = _is_of_http(error)
    if isinstance(error, openai.APITimeoutError) or (raw and "Timeout" in type(error).__name__):
        return ServerUnavailable(f"{who} said nothing for too long.", text=text)
    if isinstance(error, openai.APIConnectionError) or raw:
        why = _words(error.__cause__ or error, key)
        return ServerUnavailable(
            f"{who} does not answer ({why}).", text=text, hint="Is it running, and reachable?"
        )
    said = _words(error, key)
    if isinstance(error, openai.APIError) and error.code:  # an event of the stream
        return _of_code(error, f"{who} ended its answer with an error: {said}", text)
    return ServerUnavailable(f"{who} said what cannot be read ({said}).", text=text)


def _of_status(
    error: openai.APIStatusError, who: str, key: str | None, text: str
) -> GuardedLLMError:
    status, headers = error.status_code, error.response.headers
    words = f"{who} answered with status {status}: {_words(error, key)}"
    again = headers.get("x-should-retry")
    if overflow := _overflow(error, words):
        return overflow
    if status == 404:
        return ModelNotFound(words, hint=_HINTS[404])
    if status == 429 and error.code != "insufficient_quota" and again != "false":
        full = QueueFull(words)
        full.retry_after = retry_after(headers.get("retry-after"))
        return full
    if again != "false" and (status >= 500 or status in _PASSING):
        away = ServerUnavailable(words, text=text)
        away.retry_after = retry_after(headers.get("retry-after"))
        return away
    return ServerRefused(words, status=status, hint=_HINTS.get(status, ""))


def _of_code(error: openai.APIError, words: str, text: str) -> GuardedLLMError:
    if overflow := _overflow(error, words):
        return overflow
    if any(part in (error.code or "") for part in _FINAL):
        return ServerRefused(words)
    return ServerUnavailable(words, text=text)


def _overflow(error: openai.APIError, words: str) -> ContextOverflow | None:
    """The prompt is too long, and the server says by how much."""
    if error.code != "context_length_exceeded":
        return None
    counts = [member(error.body, name) for name in ("context_window", "prompt_tokens")]
    if not all(isinstance(count, int) for count in counts):
        counts = [int(n.replace(",", "")) for n in _NUMBER.findall(_said(error))[:2]]
    if len(counts) < 2:
        return None
    return ContextOverflow(words, context_window=counts[0], prompt_tokens=counts[1])


def _said(error: BaseException) -> str:
    body: Any = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, Mapping) else None
    return str(said or error)


def _words(error: BaseException, key: str | None) -> str:
    """What an error says, on one line and without the key."""
    words = " ".join(_said(error).split()) or type(error).__name__
    if key:
        words = words.replace(key, "***")
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."
