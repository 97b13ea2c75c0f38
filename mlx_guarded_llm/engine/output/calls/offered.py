"""The check that every call must pass: the function was offered, and the arguments fit."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from ....results import ToolCall
from ....tool_check import misfit
from .python_values import python_literal
from .schemas import ArgumentSchemas
from .values import NotACall, exact_float, exact_json


class Offered:
    """The functions that may be called.

    Args:
        tools: in OpenAI form.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._tools = list(tools)
        self._functions = {
            tool["function"]["name"]: _Function(tool["function"]) for tool in reversed(tools)
        }

    def __contains__(self, name: str) -> bool:
        return self._known(name) in self._functions

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def takes(self, name: str, key: str) -> bool:
        """Whether a function has an argument of this name."""
        function = self._functions.get(self._known(name))
        return function is not None and function.takes(key)

    def _known(self, name: str) -> str:
        """The name of a function, without the namespace that models put before it."""
        return name if name in self._functions else name.removeprefix("functions.")

    def call(self, name: object, arguments: object, *, known: bool = False) -> ToolCall:
        """A call of one of the functions.

        Args:
            name: of the function.
            arguments: of the call.
            known: each argument must be in the schema. If text cannot be distinguished from the
                marks of the format, an unknown name shows that it was misread.

        Raises:
            NotACall: the function was not offered, or the arguments do not fit its schema.
        """
        if not isinstance(name, str) or not name:
            raise NotACall("the call names no function")
        name = self._known(name)
        if why := misfit(name, arguments, self._tools):
            raise NotACall(why)
        assert isinstance(arguments, dict)
        if known:
            self._functions[name].find(arguments)
        return ToolCall(f"call_{uuid.uuid4().hex}", name, arguments)

    def call_of_texts(self, name: str, texts: Sequence[tuple[str, str]]) -> ToolCall:
        """Like `call`, with arguments that are text; the schema says what values they are.

        Args:
            name: of the function.
            texts: name and text of each argument.
        """
        name = self._known(name)
        if name not in self._functions:
            raise NotACall(misfit(name, {}, self._tools))
        function = self._functions[name]
        arguments: dict[str, Any] = {}
        for key, text in texts:
            if key in arguments:
                raise NotACall(f"the argument {key!r} of {name} is given twice")
            arguments[key] = function.typed(key, text)
        return self.call(name, arguments)

    def parsed(self, parser: Callable[[str, list[Any]], Any], text: str) -> Any:
        """What a parser of mlx-lm makes of a text; it may raise anything.

        Raises:
            NotACall: whatever it raised.
        """
        try:
            return parser(text, self._tools)
        except Exception as error:
            raise NotACall(f"{type(error).__name__}: {error}") from None


class _Function:
    """One function and the schema of its arguments."""

    def __init__(self, function: Mapping[str, Any]) -> None:
        self.name: str = function["name"]
        self._lenient = function.get("strict") is False
        self._parameters = function.get("parameters") or {}

    @cached_property
    def _check(self) -> ArgumentSchemas:
        return ArgumentSchemas(self._parameters)

    def find(self, keys: Iterable[str]) -> None:
        """Raise `NotACall` unless the schema has all of these arguments."""
        for key in keys:
            self._schemas(key)

    def takes(self, key: str) -> bool:
        """Whether there is an argument of this name."""
        return self._lenient or any(True for _ in self._check.of_argument(key))

    def _schemas(self, key: str) -> list[Any]:
        """The schemas that may apply to an argument."""
        schemas = [True] if self._lenient else list(self._check.of_argument(key))
        if not schemas:
            raise NotACall(f"{self.name} has no argument {key[:80]!r}")
        return schemas

    def typed(self, key: str, text: str) -> Any:
        """The value of an argument that a format without types writes as text.

        It is the JSON value of the text if the schema allows that, otherwise the text itself,
        otherwise what models write for JSON values, such as True or ['a'].
        """
        schemas = self._schemas(key)
        for read in _READINGS:
            try:
                value = read(text)
            except NotACall:
                continue
            if any(self._check.allows(schema, value) for schema in schemas):
                return value
        raise NotACall(f"the argument {key!r} of {self.name} cannot be {text[:40]!r}")


def _json_but_no_string(text: str) -> Any:
    value = exact_json(text)
    if isinstance(value, str):  # the quotes are part of the text
        raise NotACall("a string")
    return value


def _text(text: str) -> str:
    return text


def _loosely(text: str) -> Any:
    """A value as Python writes it, or almost as JSON does."""
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _NUMBER.fullmatch(text):
        return exact_float(text) if "." in text else exact_json(text.removeprefix("+"))
    return python_literal(text)


_READINGS: tuple[Callable[[str], Any], ...] = (_json_but_no_string, _text, _loosely)
_WORDS = {"true": True, "false": False, "none": None, "null": None}
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
