"""Bodies of requests, bounded, and their queries: read into models of pydantic's."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, FailFast, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from ..json_values import MAX_VALUES
from .errors import HTTPError, refused, too_large
from .settings import Limits

T = TypeVar("T", bound=BaseModel)
Item = TypeVar("Item")


class _FailFast(FailFast):
    __hash__ = object.__hash__  # as it must have in a union


# A list whose first wrong item is the only one that is looked at: of a million of them, pydantic
# would tell each, for as long as a minute, in which the server does nothing else.
Items = Annotated[list[Item], _FailFast()]

MANY = 4096  # values in all that need no closer look, and names in one object at most


async def read_body(request: Request, kind: type[T], limits: Limits) -> T:
    """The body of a request.

    Args:
        request: whose.
        kind: what it is to be.
        limits: what it may take.

    Raises:
        HTTPError: it is too large, comes too slowly, is no JSON, or not of this kind.
        ClientDisconnect: the client went away.
    """
    # A page of another site may send anything but this type without being asked first.
    kind_of_body = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind_of_body != "application/json":
        raise HTTPError(
            415,
            "unsupported_media_type",
            "the body must be JSON.",
            hint="Send the header `content-type: application/json`.",
        )
    try:
        async with asyncio.timeout(limits.body_seconds):
            data = await _bounded(request, limits.body_bytes)
    except TimeoutError:
        raise HTTPError(
            408, "timeout", f"the body did not arrive within {limits.body_seconds:g} s."
        ) from None
    try:
        return kind.model_validate(_parsed(data))
    except ValidationError as error:
        raise _wrong(error) from None
    except ValueError as error:
        raise refused(f"the body is no JSON ({error}).") from None


def read_query(request: Request, kind: type[T]) -> T:
    """The parameters in the address of a request.

    Raises:
        HTTPError: there is one that it does not know, or a wrong value.
    """
    try:
        return kind.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise _wrong(error) from None


async def _bounded(request: Request, most: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large("body_bytes", f"{int(length):,}", most, status=413)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_large("body_bytes", "more", most, status=413)
        parts.append(part)
    return b"".join(parts)


def _parsed(data: bytes) -> Any:
    """The values of a body.

    Raises:
        HTTPError: it has more than can be looked at while others wait.
        ValueError: it is no JSON.
    """
    opened = data.count(b"[") + data.count(b"{")
    if opened > MAX_VALUES:  # before they become lists and objects, which takes long
        raise _too_many("opening brackets", MAX_VALUES)
    # Python's NaN and Infinity are no JSON, and could not be sent back.
    body = from_json(data, allow_inf_nan=False)
    if opened + data.count(b",") < MANY:
        return body  # each value follows one of these
    found, seen = [body], 0
    while found:
        value = found.pop()
        seen += 1
        if isinstance(value, dict):
            if len(value) > MANY:
                raise _too_many("names in one object", MANY)
            found.extend(value.values())
        elif isinstance(value, list):
            found.extend(value)
        if seen + len(found) > MAX_VALUES:
            raise _too_many("values", MAX_VALUES)
    return body


def _too_many(what: str, most: int) -> HTTPError:
    message = f"the body has too many {what}; {most:,} are the most."
    return HTTPError(400, "too_large", message)


def _wrong(error: ValidationError) -> HTTPError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return refused(
            f"{where} is nothing that this server knows.",
            param=where,
            code="unsupported_parameter",
            hint="Leave it out.",
        )
    count = error.error_count()
    more = f" ({count - 1} more)" if count > 1 else ""
    return refused(f"{where or 'the body'}: {first['msg']}{more}.", param=where)


__all__ = ["ClientDisconnect", "read_body", "read_query"]
