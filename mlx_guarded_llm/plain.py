"""Copies of what callers pass, made of plain JSON values, so that they pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import InvalidRequest


def plain_copy(value: object, where: str) -> Any:
    """A deep copy made of dicts, lists and scalars.

    Args:
        value: mappings, lists, tuples, strings, numbers, booleans and None.
        where: its name in messages.

    Raises:
        InvalidRequest: there is something else in it, or it is nested without end.
    """
    try:
        return _copy(value, where)
    except RecursionError:
        raise InvalidRequest(f"{where} is nested too deeply.") from None


def plain_mapping(value: object, where: str) -> dict[str, Any]:
    """As `plain_copy`, of a mapping."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{where} is a {type(value).__name__}; it must be a mapping.")
    copy: dict[str, Any] = plain_copy(value, where)
    return copy


def plain_text(value: str, where: str) -> str:
    """The string as UTF-8 can carry it; an enum that is a string becomes a plain one."""
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{where} is not valid Unicode ({error.reason}).") from error
    return text


def _copy(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return plain_text(value, where)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidRequest(f"{where} has the key {key!r}; keys must be strings.")
        return {
            plain_text(key, where): _copy(item, f"{where}.{key}") for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_copy(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise InvalidRequest(f"{where} is a {type(value).__name__}; only JSON values are taken.")
