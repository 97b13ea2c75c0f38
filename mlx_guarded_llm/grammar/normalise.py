"""Normalising the JSON Schemas that people and programs write.

pydantic, zod, OpenAPI, MCP servers and the older drafts write the same thing in many ways. The
normal form is draft 2020-12 with only those keywords that limit values; every reference points
into `$defs`. Grammars are made from this form, and values are checked against it, so the two
agree on what a schema means.

Keywords that limit nothing are left out: titles, descriptions, defaults, examples, `$schema`,
`$id`, `$comment`, `readOnly`, `deprecated`, `contentEncoding`, custom keywords. OpenAPI's
`nullable` is left out too: the value is then never null, which the schema allows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from ..errors import InvalidGrammar

TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})

_COUNTS = (
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
)
_SINGLE = (
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPPINGS = ("dependentSchemas", "patternProperties", "properties")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")

Schema = dict[str, Any] | bool


def normalised_schema(schema: Mapping[str, Any] | bool, where: str = "schema") -> Schema:
    """The schema in the normal form. True and False stay as they are.

    Args:
        schema: as the caller wrote it; it is not changed.
        where: what messages call it.

    Raises:
        InvalidGrammar: it is not a schema, or a reference points nowhere; with name and place.
    """
    try:
        return _Reader(schema, where).read()
    except RecursionError:
        raise InvalidGrammar(f"{where} is nested too deeply.") from None


class _Reader:
    """Normalises one schema; what it refers to is collected in `$defs`."""

    def __init__(self, root: Mapping[str, Any] | bool, where: str) -> None:
        self._root = root
        self._where = where
        self._definitions: dict[str, Any] = {}
        self._names: dict[str, str] = {}  # reference -> its name among the definitions
        self._anchors: dict[str, Any] | None = None

    def read(self) -> Schema:
        self._check_wrapping()
        whole = self._schema(self._root, self._where)
        if isinstance(whole, dict) and self._definitions:
            whole["$defs"] = self._definitions
        try:
            json.dumps(whole, allow_nan=False)
        except ValueError:
            raise InvalidGrammar(f"{self._where} has a number that JSON does not know.") from None
        return whole

    def _check_wrapping(self) -> None:
        root = self._root
        if isinstance(root, Mapping) and isinstance(unwrapped(root), Mapping):
            raise InvalidGrammar(
                f"{self._where} is wrapped in what services want around it.",
                hint="Pass what stands under its 'schema' alone.",
            )

    def _schema(self, schema: Any, where: str) -> Schema:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise InvalidGrammar(f"{where} is {schema!r}, which is no JSON Schema.")
        out: dict[str, Any] = {}
        self._add_type(schema, out, where)
        self._add_bounds(schema, out, where)
        self._add_rest(schema, out, where)
        self._add_schemas(schema, out, where)
        self._add_older(schema, out, where)
        if out.get("not") in ({}, True):  # zod writes "never" like this
            return False
        if "propertyNames" in out and _any_name(out["propertyNames"]):
            del out["propertyNames"]
        return out

    # ---- values ------------------------------------------------------------------------

    def _add_type(self, schema: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
        named = schema.get("type")
        if named is None:
            return
        names = named if isinstance(named, (list, tuple)) else [named]
        for name in names:
            if not isinstance(name, str) or name not in TYPES:
                raise InvalidGrammar(
                    f"{where} is of type {name!r}, which JSON Schema does not have.",
                    hint=f"There are {', '.join(sorted(TYPES))}.",
                )
        out["type"] = names[0] if len(names) == 1 else list(names)

    def _add_bounds(self, schema: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
        for key in _COUNTS:
            if schema.get(key) is not None:
                number = _number(schema[key], f"{where}.{key}")
                if number < 0 or number != int(number):
                    raise InvalidGrammar(f"{where}.{key} is {number}; it must be a whole number.")
                out[key] = int(number)
        for key in ("minimum", "maximum", "multipleOf"):
            if schema.get(key) is not None and not _endless(schema[key], key):
                out[key] = _number(schema[key], f"{where}.{key}")
        for key, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            bound = schema.get(key)
            if bound is True and plain in out:  # draft 4, and OpenAPI 3.0
                out[key] = out.pop(plain)
            elif bound is not None and not isinstance(bound, bool) and not _endless(bound, key):
                out[key] = _number(bound, f"{where}.{key}")

    def _add_rest(self, schema: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
        if "const" in schema:
            out["const"] = schema["const"]
        if "enum" in schema:
            if not isinstance(schema["enum"], (list, tuple)):
                raise InvalidGrammar(f"{where}.enum is {schema['enum']!r}; it must be a list.")
            out["enum"] = list(schema["enum"])
        for key in ("pattern", "format"):
            if isinstance(schema.get(key), str):
                out[key] = schema[key]
        if isinstance(schema.get("required"), (list, tuple)):  # draft 3 had True there
            out["required"] = [str(name) for name in schema["required"]]
        if schema.get("uniqueItems") is True:
            out["uniqueItems"] = True
        tag = schema.get("discriminator")
        if isinstance(tag, Mapping) and isinstance(tag.get("propertyName"), str):
            out["discriminator"] = {"propertyName": tag["propertyName"]}

    # ---- the schemas in it ------------------------------------------------------------

    def _add_schemas(self, schema: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
        for key in _REFERENCES:
            if key in schema and "$ref" not in out:
                out["$ref"] = f"#/$defs/{self._reference(schema[key], where)}"
        for key in _SINGLE:
            if key in schema and not isinstance(schema[key], (list, tuple)):
                out[key] = self._schema(schema[key], f"{where}.{key}")
        for key in _LISTS:
            if key in schema:
                out[key] = self._list(schema[key], f"{where}.{key}")
        for key in _MAPPINGS:
            if key in schema:
                out[key] = self._mapping(schema[key], f"{where}.{key}")
        if "dependentRequired" in schema:
            out["dependentRequired"] = _names(
                schema["dependentRequired"], f"{where}.dependentRequired"
            )

    def _add_older(self, schema: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
        if isinstance(schema.get("items"), (list, tuple)):  # the older name of prefixItems
            out["prefixItems"] = self._list(schema["items"], f"{where}.items")
            if "additionalItems" in schema:
                others = schema["additionalItems"]
                out["items"] = self._schema(others, f"{where}.additionalItems")
        if "dependencies" in schema:
            place = f"{where}.dependencies"
            if not isinstance(schema["dependencies"], Mapping):
                raise InvalidGrammar(
                    f"{place} is {schema['dependencies']!r}; it must be a mapping."
                )
            for name, needed in schema["dependencies"].items():
                if isinstance(needed, (list, tuple)):
                    out.setdefault("dependentRequired", {})[name] = list(needed)
                else:
                    inner = self._schema(needed, f"{place}.{name}")
                    out.setdefault("dependentSchemas", {})[name] = inner

    def _list(self, schemas: Any, where: str) -> list[Any]:
        if not isinstance(schemas, (list, tuple)):
            raise InvalidGrammar(f"{where} is {schemas!r}; it must be a list.")
        return [self._schema(schema, f"{where}[{i}]") for i, schema in enumerate(schemas)]

    def _mapping(self, schemas: Any, where: str) -> dict[str, Any]:
        if not isinstance(schemas, Mapping):
            raise InvalidGrammar(f"{where} is {schemas!r}; it must be a mapping.")
        return {name: self._schema(inner, f"{where}.{name}") for name, inner in schemas.items()}

    # ---- references ------------------------------------------------------------------------

    def _reference(self, reference: Any, where: str) -> str:
        """The name, among the definitions, of what a reference points to."""
        key = str(reference)
        if key not in self._names:
            target = self._find(reference, where)
            name = f"{key.rpartition('/')[2].lstrip('#')}_{len(self._names)}"
            self._names[key] = "".join(c if c.isalnum() else "_" for c in name)
            self._definitions[self._names[key]] = self._schema(target, f"{where} -> {reference}")
        return self._names[key]

    def _find(self, reference: Any, where: str) -> Any:
        if not isinstance(reference, str):
            raise InvalidGrammar(f"{where} refers to {reference!r}, which is no reference.")
        base, _, fragment = reference.partition("#")
        if self._anchors is None:
            self._anchors = _anchors(self._root)
        target = self._anchors.get(base) if base else self._root
        if target is not None and fragment and not fragment.startswith("/"):
            target = self._anchors.get(f"#{fragment}")
        if target is None:
            raise InvalidGrammar(
                f"{where} refers to {reference!r}; only references within the schema, "
                "such as '#/$defs/Name', are followed."
            )
        for step in fragment[1:].split("/") if fragment.startswith("/") else ():
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(target, (list, tuple)) and name.isdigit() and int(name) < len(target):
                target = target[int(name)]
            elif isinstance(target, Mapping) and name in target:
                target = target[name]
            else:
                raise InvalidGrammar(f"{where} refers to {reference!r}, which is not there.")
        return target


def unwrapped(schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema inside OpenAI's wrapping; None if it is not wrapped.

    Both `{"name": ..., "strict": ..., "schema": {...}}` and the whole `response_format`, which has
    that under "json_schema", are recognised.
    """
    inner = schema.get("json_schema") if schema.get("type") == "json_schema" else None
    wrapping = inner if isinstance(inner, Mapping) else schema
    bare = wrapping.get("schema")
    named = wrapping.keys() <= {"name", "schema", "strict", "description", "type"}
    return bare if named and isinstance(bare, Mapping) else None


def _anchors(root: Any) -> dict[str, Any]:
    """The schemas with names: by `$anchor`, by `$id`, and by the last part of `$id`."""
    found: dict[str, Any] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            for key in ("$anchor", "$dynamicAnchor"):
                if isinstance(node.get(key), str):
                    found.setdefault(f"#{node[key]}", node)
            for key in ("$id", "id"):
                if isinstance(node.get(key), str):
                    address = node[key].removesuffix("#")
                    found.setdefault(address, node)
                    found.setdefault(address.rpartition("/")[2] or address, node)
            waiting += node.values()
        elif isinstance(node, (list, tuple)):
            waiting += node
    return found


def _any_name(schema: Schema) -> bool:
    """Whether every string follows this schema, and so every name of a property."""
    if isinstance(schema, bool):
        return schema
    return schema.keys() <= {"type", "format"} and "string" in schema.get("type", "string")


def _number(value: object, where: str) -> int | float:
    if isinstance(value, int) and not isinstance(value, bool):
        return value  # it may be larger than any float
    if not isinstance(value, float) or not math.isfinite(value):
        raise InvalidGrammar(f"{where} is {value!r}; it must be a number that JSON knows.")
    return value


def _endless(value: object, key: str) -> bool:
    """Whether a bound is infinite and limits nothing, as some programs write "no bound"."""
    upper = key.lower().endswith("maximum")
    return isinstance(value, float) and value == (math.inf if upper else -math.inf)


def _names(value: object, where: str) -> dict[str, list[str]]:
    if isinstance(value, Mapping) and all(isinstance(v, (list, tuple)) for v in value.values()):
        return {key: list(names) for key, names in value.items()}
    raise InvalidGrammar(f"{where} is {value!r}; it must map names to lists of names.")
