"""What callers pass, as plain JSON values, so that it pickles and its classes do nothing."""

from __future__ import annotations

import numbers
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from reprlib import Repr
from typing import Any, cast

from .errors import GuardedLLMError, InvalidRequest

MAX_DEPTH = 128  # of values in values: what readers of JSON commonly take
MAX_VALUES = 250_000  # in one copy: a list may hold itself, or another one many times
MAX_TOKEN_ID = 2**31 - 1  # what MLX counts tokens with
_MAX_BITS = 14_000  # of an integer: Python refuses to print much longer ones
_SHOWN = 200  # characters
_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)\s*")
_UNITS = {"": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_UNITS |= {"KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "TIB": 1024**4}
BUILTIN = frozenset({type(None), bool, int, float})  # types whose values need no copy


def json_copy(value: object, where: str) -> Any:
    """A deep copy made of dicts, lists and scalars.

    Args:
        value: mappings, lists, tuples, strings, numbers, booleans and None.
        where: its name in messages.

    Raises:
        InvalidRequest: there is something else in it, a number too long for JSON's readers,
            more than `MAX_DEPTH` levels or more than `MAX_VALUES`; or it cannot be read.
    """
    with readable(where):
        return _Copier(where).copy(value, where, MAX_DEPTH)


def json_object(value: object, where: str) -> dict[str, Any]:
    """As `json_copy`, of a mapping."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{where} is a {type(value).__name__}; it must be a mapping.")
    copy: dict[str, Any] = json_copy(value, where)
    return copy


def plain_text(value: str, where: str) -> str:
    """The string as UTF-8 can carry it; an enum that is a string becomes a plain one."""
    text = value if type(value) is str else str.__str__(value)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{where} is not valid Unicode ({error.reason}).") from error
    return text


def plain_number(value: Any) -> Any:
    """A number, of numpy or of any class of its own, as Python's; anything else as it is.

    No method of a class derived from `int` or `float` is called: it may do anything, and
    another process may not have that class.
    """
    if type(value) in BUILTIN or type(value) is str:
        return value
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    try:
        if isinstance(value, numbers.Integral):
            return int(value)
        if isinstance(value, numbers.Real):
            return float(value)
        # numpy's truth values are not registered as numbers
        return bool(value) if type(value).__name__ in ("bool", "bool_") else value
    except Exception:  # a class that only claims to be a number
        return value


def plain_scalar(value: Any, where: str) -> Any:
    """A string or a number as Python's own; anything else as it is."""
    return plain_text(value, where) if isinstance(value, str) else plain_number(value)


def plain_list(value: object, where: str, of: str = "values") -> list[Any]:
    """The items of a list or tuple.

    Args:
        of: what they should be, for the message.

    Raises:
        InvalidRequest: it is neither, or cannot be read.
    """
    if type(value) in (list, tuple):
        return list(cast("list[Any]", value))
    if not isinstance(value, (list, tuple)):
        raise InvalidRequest(f"{where} is {shown(value)}; it must be a list of {of}.")
    with readable(where):
        return list(value)


def token_ids(value: object, where: str) -> tuple[int, ...]:
    """The ids of tokens that a caller gives in place of text.

    Raises:
        InvalidRequest: there is something else in it.
    """
    ids = [plain_number(item) for item in plain_list(value, where, "token ids")]
    for token in ids:
        if type(token) is not int or not 0 <= token <= MAX_TOKEN_ID:
            raise InvalidRequest(f"{where} has {shown(token)}; it must be ids of tokens.")
    return tuple(ids)


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Guard a block that reads a caller's value, whose class may raise anything.

    Raises:
        InvalidRequest: the block raised an error that is not one of this library's.
    """
    try:
        yield
    except GuardedLLMError:
        raise
    except Exception as error:
        raise InvalidRequest(f"{where} cannot be read ({error_text(error)}).") from error


def error_text(error: BaseException) -> str:
    """The type of an exception, and its message if it has one that can be read."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def characters(value: Any) -> int:
    """How many characters all strings in a plain copy have, keys included."""
    count, left = 0, [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            count += len(value)
        elif isinstance(value, Mapping):
            left += value
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
    return count


def shown(value: object) -> str:
    """A value as text for a message, shortened if it is long, whatever its class does."""
    try:
        text = _brief.repr(value)
    except (Exception, SystemExit):  # a number of many digits has none; a class may do anything
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class _Brief(Repr):
    """A `repr` that is quick for a list that holds another one many times."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 3, 20, 20, 20
        self.maxstring = self.maxother = 2 * _SHOWN  # more than is shown of them

    def repr_instance(self, x: Any, level: int) -> str:
        """See `Repr`: for all types without a method of their own there."""
        if isinstance(x, Collection) and not isinstance(x, (str, bytes, type)):
            return f"a {type(x).__name__}"
        return repr(x)


_brief = _Brief()


class _Copier:
    """Makes one plain copy.

    Args:
        where: the name of the whole in messages.
    """

    def __init__(self, where: str) -> None:
        self._whole = where
        self._left = MAX_VALUES

    def copy(self, value: Any, where: str, levels: int) -> Any:
        """Copy a part of it.

        Args:
            value: the part.
            where: its name in messages.
            levels: how deeply it may be nested.
        """
        self._left -= 1
        if self._left < 0:
            raise InvalidRequest(
                f"{self._whole} holds more than {MAX_VALUES} values.",
                hint="Does it hold itself?",
            )
        if type(value) is str and value.isascii():
            return value
        value = plain_number(value)
        if value is None or isinstance(value, (bool, int, float)):
            if isinstance(value, int) and value.bit_length() > _MAX_BITS:
                raise InvalidRequest(
                    f"{where} is an integer of {value.bit_length()} bits; {_MAX_BITS} are the most."
                )
            return value
        if isinstance(value, str):
            return plain_text(value, where)
        if not isinstance(value, (Mapping, list, tuple)):
            raise InvalidRequest(
                f"{where} is a {type(value).__name__}; only JSON values are taken."
            )
        if not levels:
            raise InvalidRequest(
                f"{where[:_SHOWN]} is nested too deeply; {MAX_DEPTH} levels are the most."
            )
        if isinstance(value, Mapping):
            return self._mapping(value, where, levels - 1)
        return [self.copy(item, f"{where}[{i}]", levels - 1) for i, item in enumerate(value)]

    def _mapping(self, value: Mapping[Any, Any], where: str, levels: int) -> dict[str, Any]:
        copy: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidRequest(f"{where} has the key {shown(key)}; keys must be strings.")
            name = plain_text(key, where)
            copy[name] = self.copy(item, f"{where}.{name[:_SHOWN]}", levels)
        return copy


def byte_count(value: object) -> int | None:
    """Bytes, given as a number or as text such as "12GB" or "1.5 GiB"; None if it is neither."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        unit = _UNITS.get(match[2].upper()) if match else None
        return int(float(match[1]) * unit) if match and unit else None
    if isinstance(value, int) and not isinstance(value, bool):
        return int(plain_number(value))
    return None
