"""Which part of JSON Schema is held to, and how the rest is refused."""

import copy
import json
from typing import Any

import pytest

from mlx_guarded_llm.errors import InvalidGrammar
from mlx_guarded_llm.grammar.schema import compiled_schema, held_part

UNSUPPORTED: dict[str, Any] = {
    "contains": {"type": "integer"},
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {"required": ["b"]}},
    "if": {"type": "integer"},
    "not": {"type": "integer"},
    "propertyNames": {"not": {"const": "b"}},
    "uniqueItems": True,
}
FORMATS = [
    "date",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "time",
    "uri",
    "uuid",
]


def compiled(schema: Any) -> dict[str, Any]:
    out = compiled_schema(schema)
    assert out.pop("x-guidance")["item_separator"] == ", "
    return out


@pytest.mark.parametrize("keyword", UNSUPPORTED)
@pytest.mark.parametrize("place", ["schema", "schema.properties.a", "schema.items.anyOf[1]"])
def test_an_unsupported_keyword_is_refused_by_name_and_place(keyword: str, place: str) -> None:
    schema: dict[str, Any] = {keyword: UNSUPPORTED[keyword]}
    if place.endswith(".a"):
        schema = {"type": "object", "properties": {"a": schema}}
    elif place.endswith("[1]"):
        schema = {"type": "array", "items": {"anyOf": [{"type": "null"}, schema]}}
    with pytest.raises(InvalidGrammar) as caught:
        compiled_schema(schema)
    assert caught.value.message.startswith(f"{place} uses the keyword {keyword!r}")
    assert caught.value.hint
    assert keyword not in json.dumps(held_part({"type": "object", "properties": {"b": schema}}))


def test_a_keyword_is_no_keyword_as_the_name_of_a_property() -> None:
    schema = {"type": "object", "properties": {"not": {"type": "integer"}, "title": True}}
    assert compiled(schema)["properties"] == {"not": {"type": "integer"}, "title": {}}


def test_what_limits_nothing_is_left_out() -> None:
    notes = {
        "title": "T",
        "description": "d",
        "default": 1,
        "examples": [1],
        "deprecated": True,
        "$comment": "c",
        "x-vendor": {"not": 1},
        "uniqueItems": False,
        "x-guidance": {"lenient": True},
    }
    assert compiled({"type": "integer", **notes}) == {"type": "integer"}
    assert compiled(True) == compiled({}) == {}


@pytest.mark.parametrize("form", FORMATS)
def test_known_formats_are_kept(form: str) -> None:
    held = compiled({"type": "string", "format": form})
    longest = {"date-time": 32, "time": 21, "duration": 32}.get(form)
    bound = {} if longest is None else {"maxLength": longest}
    assert held == {"type": "string", "format": form, **bound}
    own = {"type": "string", "format": form, "maxLength": 25}
    assert compiled(own) == own


@pytest.mark.parametrize("form", ["password", "binary", "regex", "iri", "int64", "uint8"])
def test_other_formats_are_annotations(form: str) -> None:
    assert compiled({"type": "string", "format": form}) == {"type": "string"}


def test_a_format_of_strings_is_none_of_numbers() -> None:
    """As pydantic writes a `timedelta` in seconds."""
    assert compiled({"type": "number", "format": "duration"}) == {"type": "number"}


A = {"type": "object", "properties": {"a": {"type": "integer"}}}
B = {"type": "object", "properties": {"b": {"type": "integer"}}}
CLOSED: list[Any] = [
    A,
    {"type": "array", "items": A},
    {"anyOf": [A, B]},
    {"type": "object", "anyOf": [A, B]},
    {"allOf": [A]},
    {"$ref": "#/$defs/A", "title": "A", "$defs": {"A": A}},
    {"type": "object", "properties": {"in": A}, "additionalProperties": False},
]
OPEN: list[Any] = [
    {**A, "additionalProperties": True},
    {**A, "patternProperties": {"^x": {}}},
    {**A, "minProperties": 2},
    {**A, "required": ["b"]},
    {**A, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"allOf": [A, B]},
    {"allOf": [{"$ref": "#/$defs/A"}, B], "$defs": {"A": A}},
    {"$ref": "#/$defs/A", "minProperties": 2, "$defs": {"A": A}},
    {"type": "object"},
]


@pytest.mark.parametrize(("schemas", "closed"), [(CLOSED, True), (OPEN, False)])
def test_an_object_is_closed_where_nothing_else_can_add_to_it(schemas: Any, closed: bool) -> None:
    for schema in schemas:
        assert ("'additionalProperties': False" in str(compiled(schema))) is closed, schema


def test_references_are_gathered_from_wherever_they_lead() -> None:
    schema = {
        "$ref": "#/components/schemas/X~1Y",
        "components": {"schemas": {"X/Y": {"type": "array", "items": {"$ref": "#/list/1"}}}},
        "list": [False, {"type": "string", "title": "s"}],
    }
    assert compiled(schema) == {
        "$ref": "#/$defs/X_1Y_0",
        "$defs": {
            "X_1Y_0": {"type": "array", "items": {"$ref": "#/$defs/1_1"}},
            "1_1": {"type": "string"},
        },
    }


def test_a_schema_may_refer_to_itself() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    again = compiled(node)["$defs"]["_0"]
    assert again["properties"] == {"next": {"$ref": "#/$defs/_0"}}


@pytest.mark.parametrize("reference", ["http://x/y", "#name", "#/$defs/B", "#/$defs/A/7", 3])
def test_a_reference_that_leads_nowhere(reference: Any) -> None:
    with pytest.raises(InvalidGrammar, match="refers to"):
        compiled_schema({"$defs": {"A": []}, "$ref": reference})


def test_tuples_as_they_were_written_before_2020() -> None:
    schema = {"type": "array", "items": [{"type": "integer"}], "additionalItems": False}
    assert compiled(schema) == {
        "type": "array",
        "prefixItems": [{"type": "integer"}],
        "items": False,
    }


def test_one_of_branches_that_a_property_tells_apart_is_any_of() -> None:
    def branch(kind: str) -> dict[str, Any]:
        return {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}

    defs = {"A": branch("a"), "B": branch("b")}
    both = [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]
    assert "anyOf" in compiled({"oneOf": both, "$defs": defs})
    assert "oneOf" in compiled({"oneOf": [both[0], both[0]], "$defs": defs})
    assert "oneOf" in compiled({"oneOf": [{"type": "integer"}, both[0]], "$defs": defs})


def test_the_discriminator_becomes_required() -> None:
    """Pydantic gives a `Literal` a default, and does not require it."""

    def branch(kind: str) -> dict[str, Any]:
        return {"type": "object", "properties": {"kind": {"const": kind, "default": kind}}}

    schema = {
        "oneOf": [{"$ref": "#/$defs/A"}, branch("b")],
        "discriminator": {"propertyName": "kind"},
        "$defs": {"A": branch("a")},
    }
    out = compiled(schema)
    assert out["$defs"]["A_0_0"]["required"] == ["kind"]
    assert out["anyOf"][1]["required"] == ["kind"]


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "object", "properties": [1]},
        {"type": "object", "properties": {"a": 3}},
        {"anyOf": {"type": "integer"}},
        {"prefixItems": {}},
        {"anyOf": [False]},
        {"type": "number", "minimum": float("nan")},
    ],
)
def test_what_is_no_schema(schema: Any) -> None:
    with pytest.raises(InvalidGrammar, match="schema"):
        compiled_schema(schema)


def test_numbers_longer_than_any_float() -> None:
    schema = {"type": "integer", "minimum": -(10**400), "maximum": 10**400}
    assert compiled_schema(schema)


def test_a_bottomless_schema() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(InvalidGrammar, match="too deeply"):
        compiled_schema(schema)


def test_the_callers_schema_is_not_changed() -> None:
    schema = {"oneOf": [A, {"$ref": "#/$defs/B"}], "$defs": {"B": B}, "title": "x"}
    before = copy.deepcopy(schema)
    compiled_schema(schema)
    assert schema == before
