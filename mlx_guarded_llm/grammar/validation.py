"""Whether a value follows a schema, including what no grammar can hold.

Schemas come from callers and values from models. So everything that could take for ever has a
limit, and nothing is fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cache, lru_cache
from itertools import islice
from typing import Any

from ..errors import InvalidGrammar
from .normalise import Schema, normalised_schema

_CHARACTERS = 300  # the longest message
_ERRORS = 20  # of which the best is reported
_WORDS_ONLY = frozenset({"title", "description", "examples", "default"})
_PATTERN_SECONDS = 1.0  # for searching a text for a pattern


def mismatch(value: object, schema: Mapping[str, Any] | bool) -> str:
    """What in a value its schema does not allow, and where; "" if it follows the schema.

    Args:
        value: as `json.loads` returns it.
        schema: as the caller wrote it. What is not a schema allows everything.
    """
    try:
        form = normalised(schema)
    except (InvalidGrammar, RecursionError):
        return ""
    return problem(validator(form), value)


def normalised(schema: Any) -> Schema:
    """The schema in the normal form.

    Raises:
        InvalidGrammar: it is not a schema.
    """
    return _normalised(json.dumps(schema, default=str))


def validator(schema: Any) -> Any:
    """A validator for a schema or, with `evolve`, for a part of it.

    It never fetches what a reference points to.
    """
    from referencing import Registry

    return _validator_class()(schema, registry=Registry())


def problem(validator: Any, value: object) -> str:
    """What in a value a validator does not allow, and where; "" if it allows the value."""
    from jsonschema.exceptions import best_match

    try:
        error = best_match(islice(validator.iter_errors(value), _ERRORS))
    except RecursionError:
        return "it is nested too deeply"
    except TimeoutError:
        return f"a pattern took longer than {_PATTERN_SECONDS:g} s"
    except re.error:  # jsonschema reads some patterns itself, which may not be valid in Python
        return ""
    if error is None:
        return ""
    words = error.message
    if len(words) > _CHARACTERS:
        words = f"{words[:_CHARACTERS]} ..."
    place = ".".join(str(step) for step in error.absolute_path)
    return f"{place}: {words}" if place else words


def python_pattern(pattern: str) -> re.Pattern[str] | None:
    """The pattern of a schema, which is JavaScript's, for Python; None if that is impossible.

    Python knows look-around and back references, which grammars do not. It does not know Unicode
    classes by name, which grammars do.
    """
    text = re.sub(r"\(\?<(?![=!])", "(?P<", pattern)
    text = re.sub(r"\\k<(\w+)>", r"(?P=\1)", text)
    text = re.sub(r"\\u\{([0-9a-fA-F]+)\}", lambda m: re.escape(chr(int(m[1], 16))), text)
    try:
        return re.compile(text.replace("[^]", r"[\s\S]"))
    except (re.error, ValueError, OverflowError, RecursionError):
        return None


@lru_cache(maxsize=256)
def _normalised(schema: str) -> Schema:
    return normalised_schema(json.loads(schema))


@cache
def _validator_class() -> Any:
    from jsonschema import Draft202012Validator, validators

    extend: Any = validators.extend
    own = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "items": _items,
        "multipleOf": _multiple_of,
        "uniqueItems": _unique_items,
    }
    return extend(Draft202012Validator, own)


def _error(words: str) -> Exception:
    from jsonschema import ValidationError

    return ValidationError(words)


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    found = _compiled(pattern)
    if isinstance(value, str) and found is not None and not _has(value, found):
        yield _error(f"{value!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, value: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(value, dict):
        return
    for pattern, inner in patterns.items():
        found = _compiled(pattern)
        for name, item in value.items():
            if found is not None and _has(name, found):
                yield from validator.descend(item, inner, path=name, schema_path=pattern)


def _additional_properties(validator: Any, others: Any, value: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(value, dict):
        return
    patterns = [_compiled(pattern) for pattern in schema.get("patternProperties", ())]
    if None in patterns:
        return
    for name, item in value.items():
        if name not in schema.get("properties", ()) and not any(
            found is not None and _has(name, found) for found in patterns
        ):
            yield from validator.descend(item, others, path=name)


def _items(validator: Any, items: Any, value: Any, schema: Any) -> Iterator[Any]:
    """Check each item. The validator is prepared once, because lists may be very long.

    Of equal plain values only the first is checked.
    """
    if not isinstance(value, list):
        return
    first = len(schema.get("prefixItems", ()))
    if items is False:
        if len(value) > first:
            yield _error(f"Expected at most {first} items, but there are {len(value)}")
        return
    inner = validator.evolve(schema=items)
    right: set[tuple[type, Any]] = set()
    kind = _only_type(items)
    for place in range(first, len(value)):
        item = value[place]
        if kind and inner.is_type(item, kind):
            continue
        plain = item is None or isinstance(item, (str, int, float))
        if plain and (type(item), item) in right:
            continue
        wrong = False
        for error in inner.descend(item, items, path=place):
            wrong = True
            yield error
        if plain and not wrong:
            right.add((type(item), item))


def _only_type(schema: Any) -> str:
    """The type, if that is all that a schema asks for; otherwise ""."""
    if not isinstance(schema, dict) or schema.keys() - _WORDS_ONLY - {"type"}:
        return ""
    kind = schema.get("type")
    return kind if isinstance(kind, str) else ""


def _multiple_of(validator: Any, step: Any, value: Any, schema: Any) -> Iterator[Any]:
    """In decimal: in binary fractions 19.99 is not a multiple of 0.01."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not step:
        return
    try:
        rest = Decimal(str(value)) % Decimal(str(step))
    except ArithmeticError:  # too many digits to tell
        return
    if rest:
        yield _error(f"{value!r} is not a multiple of {step!r}")


def _unique_items(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[Any]:
    """In one pass: comparing all pairs of a long list takes minutes."""
    if not wanted or not isinstance(value, list):
        return
    if len({json.dumps(item, sort_keys=True) for item in value}) < len(value):
        yield _error("the list has non-unique elements")


def _has(text: str, pattern: re.Pattern[str]) -> bool:
    """Whether a text contains a pattern, within a time limit.

    Raises:
        TimeoutError: it took too long to tell.
    """
    import regex  # type: ignore[import-untyped]  # it has no stubs

    return regex.search(pattern.pattern, text, timeout=_PATTERN_SECONDS) is not None


_compiled = lru_cache(maxsize=256)(python_pattern)
