"""Values are checked by what their schema says, whoever wrote it."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_guarded_llm.grammar.validation import mismatch, python_pattern

FITS: list[tuple[Any, Any]] = [
    (19.99, {"multipleOf": 0.01}),
    (3, {"type": "number", "minimum": 3, "exclusiveMinimum": False}),
    ("2024-x", {"pattern": r"^(?<year>\d{4})-x$"}),
    ("é", {"pattern": r"^\p{L}+$"}),  # held by a grammar; Python has no such class
    ("a\nb", {"pattern": r"^a[^]b$"}),
    ({"x-a": 1}, {"patternProperties": {r"^\p{L}": {"type": "string"}}}),
    (["a"], {"items": [{"type": "string"}], "additionalItems": False}),
    ({"a": 1}, {"additionalProperties": {"type": "integer"}, "required": True}),
    (7, {"type": "any"}),  # what is no schema allows everything
    (7, {"$ref": "http://x/y"}),
    (7, {"minimum": float("-inf"), "default": float("nan")}),
    ({"v": 1, "next": {"v": 2}}, {"properties": {"v": {}, "next": {"$ref": "#"}}}),
]
FAILS: list[tuple[Any, Any, str]] = [
    (0.015, {"multipleOf": 0.01}, "multiple"),
    (3, {"type": "number", "minimum": 3, "exclusiveMinimum": True}, "minimum"),
    ("24-x", {"pattern": r"^(?<year>\d{4})-x$"}, "does not match"),
    ("ba", {"pattern": r"^(?!b)"}, "does not match"),
    (["a", "b"], {"items": [{"type": "string"}], "additionalItems": False}, "Expected at most 1"),
    ([1, 1], {"uniqueItems": True}, "non-unique"),
    ({"a": 1}, {"dependencies": {"a": ["b"]}}, "dependency"),
    ({"a": {"b": "x"}}, {"properties": {"a": {"properties": {"b": {"type": "null"}}}}}, "a.b: "),
    ({"n": {"v": "x"}}, {"properties": {"v": {"type": "null"}, "n": {"$ref": "#"}}}, "n.v: "),
    ({"b": 1}, {"propertyNames": {"enum": ["a"]}}, "'b'"),
    (1, False, "False"),
]


@pytest.mark.parametrize(("value", "schema"), FITS)
def test_what_follows_its_schema(value: Any, schema: Any) -> None:
    assert mismatch(value, schema) == ""


@pytest.mark.parametrize(("value", "schema", "words"), FAILS)
def test_what_does_not_and_where(value: Any, schema: Any, words: str) -> None:
    assert words in mismatch(value, schema)


def test_a_message_is_no_page() -> None:
    assert len(mismatch("x" * 10_000, {"type": "integer"})) < 400


@pytest.mark.parametrize("pattern", ["(", "[a-", r"\p{L}", "(" * 5000])
def test_patterns_that_python_does_not_know(pattern: str) -> None:
    assert python_pattern(pattern) is None


def test_a_long_list_and_a_slow_pattern_have_a_bound() -> None:
    """Either would run for hours where each item, or each way to match, is tried."""
    many = [{"a": i} for i in range(50_000)]
    assert mismatch(many, {"uniqueItems": True}) == ""
    assert "non-unique" in mismatch([*many, {"a": 1}], {"uniqueItems": True})
    assert mismatch("a" * 5000 + "b", {"pattern": "^(a|aa|aaa)+$"}) != ""


def test_a_reference_to_elsewhere_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", None)
    assert mismatch(1, {"$ref": "http://localhost:1/schema"}) == ""
