"""Errors in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from ..errors import HTTPError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Details(BaseModel):
    """What is told of an error; some have more, such as counts or the answer."""

    model_config = ConfigDict(extra="allow")

    message: str
    type: str
    param: str | None
    code: str
    hint: str | None


class OpenAIError(BaseModel):
    """The shape of an error."""

    error: Details


def error_body(error: HTTPError) -> dict[str, Any]:
    """The body of a response, or the data of an event in a stream."""
    usual = "server_error" if error.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": str(error),  # with the hint, as most clients show nothing else
            "type": _TYPES.get(error.status, usual),
            "param": error.param or None,
            "code": error.code,
            "hint": error.hint or None,
            **error.details,
        }
    }
