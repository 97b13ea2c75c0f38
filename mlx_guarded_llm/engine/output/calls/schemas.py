"""What one argument of a function may be, by the schema of them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ....errors import InvalidGrammar
from ....grammar.validation import normalised, problem, validator

_CHOICES = ("allOf", "anyOf", "oneOf")
_BRANCHES = ("if", "then", "else")


class ArgumentSchemas:
    """The schemas of a function's arguments.

    An invalid schema (an unknown type, a reference to nothing) refuses no value, because that is
    the caller's mistake and not the model's.

    Args:
        schema: JSON Schema of the object that holds them.
    """

    def __init__(self, schema: Any) -> None:
        try:
            self._schema: Any = normalised(schema)
        except (InvalidGrammar, RecursionError):
            self._schema = schema
        self._validator = validator(self._schema)

    def allows(self, schema: Any, value: Any) -> bool:
        """Whether one of these schemas allows a value."""
        try:
            return not problem(self._validator.evolve(schema=schema), value)
        except Exception:  # jsonschema raises different types for invalid schemas
            return True

    def of_argument(self, key: str) -> Iterator[Any]:
        """The schemas that may apply to one argument; none if it is not allowed.

        An object that names its properties allows no others, unless it says so.
        """
        objects = list(self._objects(self._schema, set()))
        for part in objects:
            properties = part.get("properties")
            more = part.get("additionalProperties")
            if isinstance(properties, Mapping) and key in properties:
                yield properties[key]
            elif isinstance(part.get("patternProperties"), Mapping):
                yield from part["patternProperties"].values()
            if isinstance(more, Mapping) or more is True:
                yield more
        if not any("properties" in part for part in objects):
            yield True

    def _objects(self, schema: Any, seen: set[int]) -> Iterator[Mapping[str, Any]]:
        """The schema and those that it consists of, each once."""
        if not isinstance(schema, Mapping) or id(schema) in seen:
            return
        seen.add(id(schema))
        yield schema
        for keyword in _CHOICES:
            if isinstance(schema.get(keyword), list):
                for choice in schema[keyword]:
                    yield from self._objects(choice, seen)
        for keyword in _BRANCHES:
            yield from self._objects(schema.get(keyword), seen)
        if isinstance(schema.get("$ref"), str):
            yield from self._objects(_inside(self._schema, schema["$ref"]), seen)


def _inside(schema: Any, reference: str) -> Any:
    """What a reference within a schema points to; None if it points nowhere."""
    if not reference.startswith("#"):
        return None
    for step in reference[1:].split("/")[1:]:
        if not isinstance(schema, Mapping):
            return None
        schema = schema.get(step.replace("~1", "/").replace("~0", "~"))
    return schema
