"""From a JSON Schema to the part of it that llguidance holds an answer to.

Supported: type, enum, const; $ref within the schema, $defs, definitions; anyOf, allOf, and
oneOf whose branches exclude each other; properties, required, additionalProperties,
patternProperties, minProperties, maxProperties; items, prefixItems, minItems, maxItems;
minLength, maxLength, pattern (without look-around) and the formats in `FORMATS`; minimum,
maximum, exclusiveMinimum, exclusiveMaximum, multipleOf.

A keyword of JSON Schema that limits values and is not in this list is refused by name.
One that limits nothing (title, default, examples and all that JSON Schema does not know)
is left out.

Where a schema says nothing, the answer gets the narrower reading, which is valid as well:
an object with `properties` has no others, and JSON is written as `json.dumps` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from ..errors import InvalidGrammar

FORMATS = frozenset(
    {
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
    }
)
"""Formats of strings that are held. Others that JSON Schema names are refused."""

_OTHER_FORMATS = frozenset(
    {
        "idn-email",
        "idn-hostname",
        "iri",
        "iri-reference",
        "json-pointer",
        "regex",
        "relative-json-pointer",
        "uri-reference",
        "uri-template",
    }
)
_VALUES = frozenset(
    {
        "const",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "pattern",
        "required",
        "type",
    }
)
_UNSUPPORTED = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)
_CHOICES = ("anyOf", "oneOf", "allOf")

# Text as `json.dumps` writes it, which is what models have read most.
_SPACING = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


def compiled_schema(schema: Mapping[str, Any] | bool, where: str = "schema") -> dict[str, Any]:
    """The schema in the form that llguidance takes, for a grammar of its own.

    Args:
        schema: as the caller wrote it; it is not changed.
        where: its name in messages.

    Raises:
        InvalidGrammar: an unsupported keyword, by name and place, a reference that leads
            nowhere, or something that is no schema.
    """
    if schema is False:
        raise InvalidGrammar(f"{where} is False, which no answer can follow.")
    root: Mapping[str, Any] = {} if schema is True else schema
    try:
        return _Reader(root, where).read()
    except RecursionError:
        raise InvalidGrammar(f"{where} is nested too deeply.") from None


class _Reader:
    """Reads one schema; what it refers to is gathered under `$defs`."""

    def __init__(self, root: Mapping[str, Any], where: str) -> None:
        self._root = root
        self._where = where
        self._definitions: dict[str, Any] = {}
        # (reference, shared, required) -> its name among the definitions
        self._names: dict[tuple[str, bool, str], str] = {}

    def read(self) -> dict[str, Any]:
        try:
            json.dumps(self._root, allow_nan=False)
        except ValueError:
            raise InvalidGrammar(f"{self._where} has a number that JSON does not know.") from None
        whole = self._schema(self._root, self._where)
        if self._definitions:
            whole["$defs"] = self._definitions
        return {**whole, "x-guidance": _SPACING}

    def _schema(
        self, schema: Any, where: str, *, shared: bool = False, required: str = ""
    ) -> dict[str, Any]:
        """One schema and all in it.

        Args:
            shared: another schema applies to the same value, so it may have properties
                that this one does not name.
            required: a property that must be there although the schema leaves it open.
        """
        if schema is True:
            return {}
        if not isinstance(schema, Mapping):
            raise InvalidGrammar(f"{where} is {schema!r}, which is no JSON Schema.")
        self._refuse(schema, where)
        out = {key: value for key, value in schema.items() if key in _VALUES}
        if required:
            out["required"] = sorted({*_required(out), required})
        self._add_format(schema, out, where)
        self._add_items(schema, out, where)
        self._add_properties(schema, out, where)
        self._add_choices(schema, out, where, shared)
        joined = any(key in schema for key in ("$ref", *_CHOICES))
        if not (shared or joined):
            _close(out)
        return out

    def _refuse(self, schema: Mapping[str, Any], where: str) -> None:
        for key in sorted(_UNSUPPORTED & schema.keys()):
            if key == "uniqueItems" and schema[key] is False:
                continue
            raise InvalidGrammar(
                f"{where} uses the keyword {key!r}, which is not supported.",
                hint="Leave it out and check the answer for it.",
            )

    def _add_format(self, schema: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
        form = schema.get("format")
        if form in FORMATS:
            out["format"] = form
        elif form in _OTHER_FORMATS:
            raise InvalidGrammar(
                f"{where} uses the format {form!r}, which is not supported.",
                hint=f"Supported are {', '.join(sorted(FORMATS))}.",
            )

    def _add_items(self, schema: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
        first, rest = schema.get("prefixItems"), schema.get("items")
        if isinstance(rest, list):  # what prefixItems was called before 2020
            first, rest = rest, schema.get("additionalItems")
        if first is not None:
            out["prefixItems"] = self._list(first, f"{where}.prefixItems")
        if rest is not None:
            out["items"] = rest if rest is False else self._schema(rest, f"{where}.items")

    def _add_properties(self, schema: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
        for key in ("properties", "patternProperties"):
            if key not in schema:
                continue
            if not isinstance(schema[key], Mapping):
                raise InvalidGrammar(f"{where}.{key} is {schema[key]!r}; it must be a mapping.")
            out[key] = {
                name: False if value is False else self._schema(value, f"{where}.{key}.{name}")
                for name, value in schema[key].items()
            }
        others = schema.get("additionalProperties")
        if others is not None:
            out["additionalProperties"] = (
                others
                if isinstance(others, bool)
                else self._schema(others, f"{where}.additionalProperties")
            )

    def _add_choices(
        self, schema: Mapping[str, Any], out: dict[str, Any], where: str, shared: bool
    ) -> None:
        joined = [key for key in ("$ref", *_CHOICES) if key in schema]
        crowded = len(joined) > 1 or bool(out.keys() - {"type"})
        if "$ref" in schema:
            reference = self._reference(schema["$ref"], where, shared=shared or crowded)
            out["$ref"] = f"#/$defs/{reference}"
        for key in _CHOICES:
            if key not in schema:
                continue
            tag = _discriminator(schema) if key == "oneOf" else ""
            together = key == "allOf" and len(schema[key]) > 1
            branches = self._list(
                schema[key],
                f"{where}.{key}",
                shared=shared or crowded or together,
                required=tag,
            )
            apart = key == "oneOf" and self._told_apart(schema[key], tag, where)
            out["anyOf" if apart and "anyOf" not in schema else key] = branches

    def _told_apart(self, branches: list[Any], tag: str, where: str) -> bool:
        """Whether no object follows two of the branches, for the values of one property.

        llguidance finds that out for itself, but not through references.
        """
        objects = [self._resolved(branch, where) for branch in branches]
        if not objects or not all(
            isinstance(o, Mapping) and o.get("type") == "object" for o in objects
        ):
            return False
        names = {tag} if tag else set.intersection(*map(_required, objects))
        for name in names:
            seen: list[str] = []
            for schema in objects:
                properties = schema.get("properties")
                value = properties.get(name) if isinstance(properties, Mapping) else None
                choices = _choices(self._resolved(value, where))
                seen += choices or [""] * 2
            if len(seen) == len(set(seen)):
                return True
        return False

    def _resolved(self, schema: Any, where: str) -> Any:
        for _ in range(8):  # references to references; a circle ends as well
            if not (isinstance(schema, Mapping) and "$ref" in schema):
                break
            schema = self._find(schema["$ref"], where)
        return schema

    def _list(self, schemas: Any, where: str, **options: Any) -> list[Any]:
        if not isinstance(schemas, list):
            raise InvalidGrammar(f"{where} is {schemas!r}; it must be a list.")
        out = []
        for i, schema in enumerate(schemas):
            if options.get("required") and isinstance(schema, Mapping) and "$ref" in schema:
                name = self._reference(schema["$ref"], f"{where}[{i}]", **options)
                out.append({"$ref": f"#/$defs/{name}"})
            else:
                out.append(self._schema(schema, f"{where}[{i}]", **options))
        return out

    def _reference(self, reference: Any, where: str, *, shared: bool, required: str = "") -> str:
        """The name among the definitions of what a reference leads to."""
        key = (str(reference), shared, required)
        if key not in self._names:
            target = self._find(reference, where)
            name = f"{str(reference).rpartition('/')[2]}_{len(self._names)}"
            self._names[key] = "".join(c if c.isalnum() else "_" for c in name)
            self._definitions[self._names[key]] = self._schema(
                target, f"{where} -> {reference}", shared=shared, required=required
            )
        return self._names[key]

    def _find(self, reference: Any, where: str) -> Any:
        target: Any = self._root
        if reference != "#":
            if not isinstance(reference, str) or not reference.startswith("#/"):
                raise InvalidGrammar(
                    f"{where} refers to {reference!r}; only references within the schema, "
                    "such as '#/$defs/Name', are followed."
                )
            for step in reference[2:].split("/"):
                name = unquote(step).replace("~1", "/").replace("~0", "~")
                if isinstance(target, list) and name.isdigit() and int(name) < len(target):
                    target = target[int(name)]
                elif isinstance(target, Mapping) and name in target:
                    target = target[name]
                else:
                    raise InvalidGrammar(f"{where} refers to {reference!r}, which is not there.")
        return target


def _discriminator(schema: Mapping[str, Any]) -> str:
    """The property that tells the branches apart, as pydantic and OpenAPI name it."""
    named = schema.get("discriminator")
    return str(named.get("propertyName", "")) if isinstance(named, Mapping) else ""


def _close(schema: dict[str, Any]) -> None:
    """No properties but the named ones, where the schema leaves it open."""
    named = schema.get("properties")
    if (
        named is not None
        and not schema.keys() & {"additionalProperties", "patternProperties", "minProperties"}
        and _required(schema) <= named.keys()
    ):
        schema["additionalProperties"] = False


def _required(schema: Mapping[str, Any]) -> set[str]:
    names = schema.get("required")
    return {str(name) for name in names} if isinstance(names, list) else set()


def _choices(schema: Any) -> list[str]:
    """The values of an enumeration, as JSON; empty when it is none."""
    if not isinstance(schema, Mapping):
        return []
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return [json.dumps(value) for value in values] if isinstance(values, list) else []
