"""Errors in Anthropic's shape."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from ..errors import HTTPError
from ..openai.errors import Details

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicError(BaseModel):
    """The shape of an error."""

    type: Literal["error"]
    error: Details


def error_body(error: HTTPError) -> dict[str, Any]:
    """The body of a response, or the data of an event in a stream."""
    usual = "api_error" if error.status >= 500 else "invalid_request_error"
    return {
        "type": "error",
        "error": {
            "type": _TYPES.get(error.status, usual),
            "message": _message(error),
            "param": error.param or None,
            "code": error.code,
            "hint": error.hint or None,
            **error.details,
        },
    }


def _message(error: HTTPError) -> str:
    if {"prompt_tokens", "context_window"} <= error.details.keys():
        # Claude Code reads these words and numbers, and compacts its conversation.
        return (
            f"prompt is too long: {error.details['prompt_tokens']} tokens > "
            f"{error.details['context_window']} maximum"
        )
    return str(error)  # with the hint, as most clients show nothing else
