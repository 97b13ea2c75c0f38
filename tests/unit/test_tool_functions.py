"""Functions as tools: what their schemas say, and what cannot be told."""

from __future__ import annotations

import datetime
import enum
import functools
import json
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict

import pytest
from pydantic import BaseModel, Field

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.grammar.schema import held_part
from mlx_guarded_llm.tool_check import misfit
from mlx_guarded_llm.tool_functions import as_tool


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


class Place(TypedDict):
    city: str
    country: NotRequired[str]


@dataclass
class Range:
    low: int
    high: int = 10
    names: list[str] = field(default_factory=list)


class Street(BaseModel):
    name: str


class Address(BaseModel):
    street: Street
    number: int = Field(1, description="on its door")


UserId = NewType("UserId", int)


def weather(city: str, days: int = 1, *, unit: Unit = Unit.C) -> str:
    """What the weather will be: rain, mostly.

    It may be wrong.

    Args:
        city: its name, in English:
            not in French.
        days (int): how many to look ahead

    Returns:
        A sentence.
    """
    raise AssertionError("nothing calls it")


def made(tool: object) -> dict[str, Any]:
    form = as_tool(tool)
    assert isinstance(form, dict) and form["type"] == "function"
    function: dict[str, Any] = form["function"]
    json.dumps(function)
    assert held_part(function["parameters"]), "the grammar knows what it says"
    return function


def test_a_function() -> None:
    assert made(weather) == {
        "name": "weather",
        "description": "What the weather will be: rain, mostly.\n\nIt may be wrong.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {
                    "type": "string",
                    "description": "its name, in English: not in French.",
                },
                "days": {
                    "type": "integer",
                    "default": 1,
                    "description": "how many to look ahead",
                },
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    }


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (str, {"type": "string"}),
        (bool, {"type": "boolean"}),
        (float, {"type": "number"}),
        (Any, {}),
        (None, {"type": "null"}),
        (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}),  # noqa: UP045
        (int | str | None, {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (list, {"type": "array"}),
        (set[str], {"type": "array", "items": {"type": "string"}}),
        (Sequence[float], {"type": "array", "items": {"type": "number"}}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (
            tuple[int, str],
            {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string"}],
                "minItems": 2,
                "maxItems": 2,
            },
        ),
        (dict, {"type": "object"}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (Mapping[str, Any], {"type": "object", "additionalProperties": {}}),
        (Literal["a", 2, None], {"enum": ["a", 2, None]}),
        (Annotated[int, "how many"], {"type": "integer", "description": "how many"}),
        (Annotated[str, Field(description="who")], {"type": "string", "description": "who"}),
        (UserId, {"type": "integer"}),
        (datetime.date, {"type": "string", "format": "date"}),
        (uuid.UUID, {"type": "string", "format": "uuid"}),
        (
            Place,
            {
                "type": "object",
                "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        ),
        (
            Range,
            {
                "type": "object",
                "properties": {
                    "low": {"type": "integer"},
                    "high": {"type": "integer"},
                    "names": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["low"],
                "additionalProperties": False,
            },
        ),
    ],
)
def test_types(kind: Any, schema: dict[str, Any]) -> None:
    def tool(x: Any) -> None: ...

    tool.__annotations__["x"] = kind
    assert made(tool)["parameters"]["properties"]["x"] == schema


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the statement is newer")
def test_a_type_statement() -> None:
    space: dict[str, Any] = {}
    exec("type Id = int\ndef tool(x: Id): ...", space)
    assert made(space["tool"])["parameters"]["properties"]["x"] == {"type": "integer"}


def test_a_class_of_pydantic_in_a_parameter_and_alone() -> None:
    def send(to: list[Address], back: Address | None = None) -> None: ...

    tool = made(send)
    call = {"to": [{"street": {"name": "Rue"}}], "back": None}
    assert misfit("send", call, [{"function": tool}]) == ""
    assert misfit("send", {"to": [{"street": 3}]}, [{"function": tool}]) != ""
    alone = made(Address)
    assert alone["name"] == "Address"
    assert alone["parameters"] == Address.model_json_schema()


def test_two_classes_of_one_name() -> None:
    def holder(kind: type) -> type[BaseModel]:
        class Inner(BaseModel):
            x: kind  # type: ignore[valid-type]

        class Outer(BaseModel):
            inner: Inner

        return Outer

    def tool(a: Any, b: Any) -> None: ...

    tool.__annotations__ = {"a": holder(int), "b": holder(str)}
    with pytest.raises(InvalidRequest, match="two types that are called Inner"):
        as_tool(tool)
    tool.__annotations__ = {"a": holder(int), "b": holder(int)}
    definitions = made(tool)["parameters"]["$defs"]
    assert list(definitions) == ["Inner"], "two that say the same are one"


def test_rest_and_other_docstrings() -> None:
    def rest(a: int, b: str) -> None:
        """Does it.

        :param a: the first,
            and more
        :param str b: the second
        :returns: nothing
        """

    tool = made(rest)
    assert tool["description"] == "Does it."
    told = {n: s.get("description") for n, s in tool["parameters"]["properties"].items()}
    assert told == {"a": "the first, and more", "b": "the second"}

    def numpy(a: int) -> None:
        """Does it.

        Parameters
        ----------
        a : int
            the first
        """

    assert made(numpy)["description"] == "Does it."

    def silent(a: int) -> None: ...

    assert "description" not in made(silent)


def test_methods_async_and_wrapped_functions() -> None:
    class Box:
        def take(self, count: int) -> None: ...

        @staticmethod
        def put(count: int) -> None: ...

    assert list(made(Box().take)["parameters"]["properties"]) == ["count"]
    assert made(Box.put)["name"] == "put"

    async def later(count: int) -> None: ...

    assert made(later)["parameters"]["required"] == ["count"]

    @functools.wraps(weather)
    def wrapped(*args: Any, **kwargs: Any) -> str:
        return weather(*args, **kwargs)

    assert made(wrapped) == made(weather)


def test_what_is_no_function_stays_as_it_is() -> None:
    form = {"type": "function", "function": {"name": "f"}}
    assert as_tool(form) is form
    assert as_tool("f") == "f"


def _untyped(x) -> None: ...  # type: ignore[no-untyped-def]  # the fault that is looked for


def _many(*x: int) -> None: ...


def _any_name(**x: int) -> None: ...


def _by_place(x: int, /) -> None: ...


def _unknown(x: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def _bytes(x: bytes) -> None: ...


def _keys(x: dict[int, str]) -> None: ...


def _function(x: Callable[[], int]) -> None: ...


def _complex(x: list[complex]) -> None: ...


class _Endless(TypedDict):
    inner: _Endless


def _endless(x: _Endless) -> None: ...


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (_untyped, "parameter 'x' of the tool _untyped has no type"),
        (_many, r"takes \*x"),
        (_any_name, r"takes \*\*x"),
        (_by_place, "which no call can give by name"),
        (_unknown, "'Nowhere' is not defined"),
        (_bytes, "has the type <class 'bytes'>"),
        (_keys, "has the type dict"),
        (_function, "no JSON Schema"),
        (_complex, "<class 'complex'>"),
        (_endless, "no JSON Schema"),
        (lambda x: x, "has no name"),
        (functools.partial(weather, days=2), "has no name"),
        (dict, "is a class, and none of pydantic's"),
        (Range, "is a class"),
        (print, r"takes \*args|has no type"),
    ],
)
def test_what_cannot_be_told(tool: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        as_tool(tool)
    assert "OpenAI's form" in caught.value.hint
