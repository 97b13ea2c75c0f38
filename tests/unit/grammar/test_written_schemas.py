"""Schemas as pydantic, zod and servers of MCP write them: each is held, or checked afterwards.

Fields are drawn and put together at random. For each schema that comes of it: as much as a
grammar can hold compiles, an instance of it follows the grammar and passes the check, and
what is no instance fails one of the two.
"""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from enum import Enum, IntEnum
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, Json, SecretStr, create_model
from typing_extensions import TypedDict

from mlx_guarded_llm.grammar.schema import compiled_schema, held_part
from mlx_guarded_llm.grammar.validation import mismatch

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: int


class Options(TypedDict, total=False):
    deep: bool


class Leaf(BaseModel):
    """A leaf."""

    model_config = ConfigDict(extra="forbid")
    size: int = Field(default=1, ge=0, examples=[3], deprecated=True)


class Tree(BaseModel):
    label: str
    children: list[Tree] = []


class Box(BaseModel, Generic[T]):
    content: T


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


# A type of a field, a value of it as JSON, and one that its schema does not allow.
PYDANTIC: list[tuple[Any, Any, Any]] = [
    (str, "a", 1),
    (int, 3, "x"),
    (float, 0.5, "x"),
    (bool, True, 3),
    (None, None, 3),
    (bytes, "a", 3),
    (str | None, None, 3),
    (int | str, "x", None),
    (Literal["a", 1, None], 1, "b"),
    (Literal["one"], "one", "two"),
    (Colour, "red", "green"),
    (Level, 2, 7),
    (UUID, "123e4567-e89b-42d3-a456-426614174000", "1"),
    (Decimal, "1.50", True),
    (datetime.datetime, "2026-11-29T12:00:00Z", "noon"),
    (datetime.date, "2026-11-29", "today"),
    (datetime.time, "12:00:00Z", "noon"),
    (datetime.timedelta, "P1D", "a day"),
    (IPv4Address, "10.0.0.1", "home"),
    (AnyUrl, "https://a.example/b", 3),
    (Path, "/tmp", 3),
    (SecretStr, "s", 3),
    (Json, "{}", 3),
    (Point, [1, 2], [1]),
    (tuple[int, str], [1, "a"], [1]),
    (tuple[int, ...], [1, 2], ["a"]),
    (list[Leaf], [{"size": 1}], [{"size": -1}]),
    (set[str], ["a", "b"], ["a", "a"]),
    (frozenset[int], [1], [1, 1]),
    (dict[str, int], {"a": 1}, {"a": "x"}),
    (dict[Colour, int], {"red": 1}, {"green": 1}),
    (dict[Literal["a", "b"], str], {"a": "x"}, {"c": "x"}),
    (dict[Annotated[str, Field(pattern=r"^\d+$")], int], {"12": 1}, {"x": 1}),
    (dict[Annotated[str, Field(max_length=3)], int], {"abc": 1}, {"abcd": 1}),
    (dict[int, bool], {"1": True}, {"1": 3}),
    (dict[str, Any], {"a": [None]}, 3),
    (Options, {"deep": True}, {"deep": 3}),
    (Any, {"free": [1]}, ...),
    (Leaf | None, {"size": 2}, {"size": "x"}),
    (Tree, {"label": "a", "children": [{"label": "b", "children": []}]}, {"children": []}),
    (Box[int], {"content": 3}, {"content": "x"}),
    (Box[list[Tree]], {"content": []}, {"content": [3]}),
    (Annotated[Cat | Dog, Field(discriminator="kind")], {"kind": "cat", "lives": 9}, {"lives": 9}),
    (Cat | Dog, {"kind": "dog", "name": "a"}, {"kind": "cow"}),
    (Loose, {"a": 1}, {"a": "x"}),
    (Annotated[str, Field(min_length=2, max_length=4)], "abc", "a"),
    (Annotated[str, Field(max_length=1_000_000)], "abc", 3),
    (Annotated[str, Field(pattern=r"^[a-z]+(-[a-z]+)*$")], "a-b", "A"),
    (Annotated[int, Field(gt=0, le=10)], 10, 0),
    (Annotated[int, Field(multiple_of=5)], 15, 7),
    (Annotated[float, Field(multiple_of=0.01, ge=0)], 19.99, 0.005),
    (Annotated[float, Field(lt=1.5, gt=-1.5)], -0.5, 1.5),
    (Annotated[list[int], Field(min_length=1, max_length=50_000)], [1], []),
]

EMAIL = (
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]"
    r"@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
)
SAFE = {"minimum": -9007199254740991, "maximum": 9007199254740991}

# What zod 3 and 4, OpenAPI and servers of MCP write in the place of a field.
WRITTEN: list[tuple[Any, Any, Any]] = [
    ({"type": "integer", **SAFE}, 3, "x"),
    ({"type": "integer", "minimum": 0.0, "maximum": 10.0}, 3, 11),
    ({"type": "number", "exclusiveMinimum": True, "minimum": 0}, 1, 0),
    ({"type": "string", "format": "email", "pattern": EMAIL}, "a@b.de", "a..b@c.de"),
    ({"type": "string", "pattern": r"^[\w\/\-]+$", "format": "x-path"}, "a/b", "a b"),
    ({"type": "string", "pattern": r"^(?!b)[a-z]+$"}, "abc", "bcd"),
    ({"type": "string", "pattern": r"^\p{L}+$"}, "äö", 3),
    ({"type": "string", "pattern": r"^(?<first>[a-z])\k<first>$"}, "aa", "ab"),
    ({"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}, "YQ==", 3),
    ({"type": "string", "maxLength": 5.0, "minLength": 1.0}, "abc", ""),
    ({"type": "string", "nullable": True, "x-order": 3, "example": "e"}, "abc", 3),
    ({"type": ["string", "null"], "default": None}, None, 3),
    ({"type": ["string", "number", "boolean"]}, 3, None),
    ({"enum": ["a", 1, None, True, {"x": []}]}, {"x": []}, "b"),
    ({"type": "string", "enum": ["a", None], "nullable": True}, "a", "b"),
    ({"const": {"a": [1]}}, {"a": [1]}, {"a": [2]}),
    (
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}},
        {"a": 1},
        3,
    ),
    (
        {
            "type": "object",
            "propertyNames": {"type": "string", "enum": ["a", "b"]},
            "additionalProperties": {"type": "number"},
        },
        {"a": 1},
        {"c": 1},
    ),
    (
        {"type": "object", "patternProperties": {"^x-": {"type": "integer"}}},
        {"x-a": 1},
        {"x-a": "s"},
    ),
    (
        {"type": "object", "patternProperties": {"^x": {}, "^xy": {"type": "integer"}}},
        {"xy": 1},
        {"xy": "s"},
    ),
    ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1}, {"a": 1}, {}),
    (
        {"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
        {"a": 1, "b": 2},
        {"a": 1},
    ),
    (
        {
            "type": "object",
            "properties": {"how": {"enum": ["a", "b"]}, "n": {"type": "integer"}},
            "if": {"properties": {"how": {"const": "a"}}},
            "then": {"required": ["n"]},
            "required": ["how"],
        },
        {"how": "b"},
        {"how": "a"},
    ),
    ({"type": "integer", "not": {"const": 3}}, 4, 3),
    ({"type": "array", "contains": {"const": 1}, "items": {"type": "integer"}}, [2, 1], [2]),
    ({"type": "array", "items": [{"type": "string"}], "additionalItems": False}, ["a"], [1]),
    (
        {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}},
        ["a", 1],
        ["a", "b"],
    ),
    ({"type": "array", "uniqueItems": True, "items": {"type": "string"}}, ["a"], ["a", "a"]),
    ({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 9}]}, 3, 9),
    ({"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}, ["a"], 3),
    ({"anyOf": [{"not": {}}, {"type": "string"}]}, "a", 3),
    (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
                {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
            ],
            "unevaluatedProperties": False,
        },
        {"a": "x", "b": 1},
        {"a": "x", "b": 1, "c": 2},
    ),
    ({"type": "object", "properties": {"a": {"type": "string", "required": True}}}, {"a": "x"}, 3),
    ({"$ref": "#/definitions/Node"}, {"next": {"next": None}}, {"next": 3}),
    ({"$ref": "#node"}, {"next": None}, {"next": 3}),
    ({"$ref": "https://a.example/schema.json#/definitions/Node"}, {"next": None}, 3),
    ({"type": "number", "default": float("nan"), "minimum": float("-inf")}, 3, "x"),
    ({"description": "anything", "title": "T", "readOnly": True, "writeOnly": False}, [1], ...),
    (True, [1], ...),
]
NODE = {
    "$anchor": "node",
    "type": "object",
    "properties": {"next": {"anyOf": [{"$ref": "#/definitions/Node"}, {"type": "null"}]}},
}


@cache
def _bytes() -> LLTokenizer:
    return LLTokenizer("byte")


def reads(schema: Any, text: str) -> bool:
    """Whether a text is all that a schema's grammar wants."""
    grammar = json.dumps({"grammars": [{"json_schema": schema}]})
    matcher = LLMatcher(_bytes(), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = _bytes().tokenize_str(text)
    return bool(matcher.validate_tokens(tokens) == len(tokens)) and (
        bool(matcher.consume_tokens(tokens)) and bool(matcher.is_accepting())
    )


def check(schema: dict[str, Any], good: dict[str, Any], bad: list[dict[str, Any]]) -> None:
    held = held_part(schema)
    for grammar in (compiled_schema(held), compiled_schema(schema, loosely=True)):
        assert reads(grammar, json.dumps(good, ensure_ascii=False)), good
        for value in bad:
            is_held = not reads(grammar, json.dumps(value, ensure_ascii=False))
            assert is_held or mismatch(value, schema), value
    assert mismatch(good, schema) == ""


def mixed(fields: list[tuple[Any, Any, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An object with a value for each field, and objects that have one bad value each."""
    good = {f"f{i}": value for i, (_, value, _) in enumerate(fields)}
    bad = [{**good, f"f{i}": wrong} for i, (_, _, wrong) in enumerate(fields) if wrong is not ...]
    return good, bad


@pytest.mark.parametrize("field", PYDANTIC, ids=lambda field: str(field[0])[:60])
@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_each_field_of_pydantic(field: tuple[Any, Any, Any], mode: Any) -> None:
    if mode == "serialization" and field[0] in (Decimal, Json):
        pytest.skip("it is written as another type than it is read")
    model = create_model("M", f0=(field[0], ...))
    check(model.model_json_schema(mode=mode), *mixed([field]))


@settings(deadline=None)  # other work on the machine may slow it down
@given(st.lists(st.sampled_from(PYDANTIC), min_size=2, max_size=6))
def test_classes_of_pydantic(fields: list[tuple[Any, Any, Any]]) -> None:
    named: dict[str, Any] = {f"f{i}": (kind, ...) for i, (kind, _, _) in enumerate(fields)}
    model = create_model("M", **named)
    check(model.model_json_schema(), *mixed(fields))


def written(fields: list[tuple[Any, Any, Any]]) -> dict[str, Any]:
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "https://a.example/schema.json",
        "$comment": "by a program",
        "title": "Arguments",
        "type": "object",
        "properties": {f"f{i}": schema for i, (schema, _, _) in enumerate(fields)},
        "required": [f"f{i}" for i in range(len(fields))],
        "additionalProperties": False,
        "definitions": {"Node": NODE},
    }


@pytest.mark.parametrize("field", WRITTEN, ids=lambda field: str(field[0])[:60])
def test_each_way_to_write_a_field(field: tuple[Any, Any, Any]) -> None:
    check(written([field]), *mixed([field]))


@settings(deadline=None)  # other work on the machine may slow it down
@given(st.lists(st.sampled_from(WRITTEN), min_size=2, max_size=6))
def test_objects_as_programs_write_them(fields: list[tuple[Any, Any, Any]]) -> None:
    check(written(fields), *mixed(fields))
