"""From a JSON Schema to the part of it that llguidance holds an answer to.

llguidance says itself which keywords and formats it knows. What limits values and is not held
is refused by name and place, or, where the answer is checked afterwards, left out
(`held_part`). A format that llguidance does not know is an annotation, as JSON Schema has it,
and limits nothing. Keywords that limit nothing are gone by now, see `normalise`.

This module says the same thing in keywords that are held, where llguidance does not do so:
oneOf whose branches exclude each other through references, propertyNames that list names or
match a pattern, unevaluatedProperties. Where a schema leaves something open, the answer gets
the narrower reading, which is valid as well: an object with `properties` has no others, and
JSON is written as `json.dumps` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..errors import InvalidGrammar
from .normalise import normalised_schema
from .validation import python_pattern

# In characters, with microseconds and an offset. Without a limit, a fraction of a second, or a
# number in a duration, could go on for ever.
_LONGEST = {"date-time": 32, "time": 21, "duration": 32}

# Keywords whose values hold schemas, or that are passed on with changes.
_TREATED = frozenset(
    {
        "$defs",
        "$ref",
        "additionalProperties",
        "allOf",
        "anyOf",
        "discriminator",
        "format",
        "items",
        "oneOf",
        "patternProperties",
        "prefixItems",
        "properties",
        "propertyNames",
    }
)
# What llguidance may be unable to hold in combination with other keywords, the most likely first.
_AT_TIMES_HELD = (
    "pattern",
    "minProperties",
    "maxProperties",
    "patternProperties",
    "multipleOf",
    "format",
)
_CHOICES = ("anyOf", "oneOf", "allOf")

# JSON as `json.dumps` writes it, which models have seen most.
_SPACING = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


def compiled_schema(
    schema: Mapping[str, Any] | bool, where: str = "schema", *, loosely: bool = False
) -> dict[str, Any]:
    """The schema in the form that llguidance accepts.

    Args:
        schema: as the caller wrote it; it is not changed.
        where: what messages call it.
        loosely: leave out what cannot be held, since the value is checked afterwards.

    Raises:
        InvalidGrammar: a keyword is not supported (with its name and place), a reference points
            nowhere, or something is not a schema.
    """
    return {**_read(schema, where, loosely=loosely)[0], "x-guidance": _SPACING}


def held_part(schema: Mapping[str, Any] | bool) -> Mapping[str, Any] | bool:
    """The part of a schema that a grammar can hold, for answers that are checked afterwards.

    It is the schema itself if a grammar can hold all of it.

    Raises:
        InvalidGrammar: as `compiled_schema` does.
    """
    if isinstance(schema, bool):
        return schema
    held, is_all = _read(schema, "schema", loosely=True)
    return schema if is_all else held


def _read(
    schema: Mapping[str, Any] | bool, where: str, *, loosely: bool
) -> tuple[dict[str, Any], bool]:
    """The part of a schema that is held, and whether that is all of it."""
    root = normalised_schema(schema, where)
    if root is False:
        raise InvalidGrammar(f"{where} is False, which no answer can follow.")
    reader = _Reader({} if root is True else root, where, loosely=loosely)
    try:
        return reader.read(), reader.is_all
    except RecursionError:
        raise InvalidGrammar(f"{where} is nested too deeply.") from None


class _Reader:
    """Reads a schema in the normal form; what it refers to is collected in `$defs`."""

    def __init__(self, root: Mapping[str, Any], where: str, *, loosely: bool) -> None:
        self._root = root
        self._where = where
        self._loosely = loosely
        self.is_all = True  # nothing was left out
        self._definitions: dict[str, Any] = {}
        # (reference, shared, required) -> its name among the definitions
        self._names: dict[tuple[str, bool, str], str] = {}

    def read(self) -> dict[str, Any]:
        whole = self._schema(self._root, self._where)
        if self._definitions:
            whole["$defs"] = self._definitions
        return whole

    def _schema(
        self, schema: Any, where: str, *, shared: bool = False, required: str = ""
    ) -> dict[str, Any]:
        """One schema and those in it.

        Args:
            shared: another schema applies to the same value, which may have properties that this
                one does not name.
            required: a property to require although the schema does not.
        """
        if schema is True:
            return {}
        if schema is False:
            raise InvalidGrammar(f"{where} is False, which is no JSON Schema that a value follows.")
        joined = any(key in schema for key in ("$ref", *_CHOICES))
        schema = _simpler(schema, alone=not (shared or joined))
        if joined and not shared and schema.get("unevaluatedProperties") is False:
            schema = self._closed(schema)
        out: dict[str, Any] = {}
        for key, value in schema.items():
            if key in _TREATED:
                continue
            if _is_held(key):
                out[key] = value
            else:
                self._leave_out(key, where)
        if required:
            out["required"] = sorted({*_required(out), required})
        form = schema.get("format")
        if form and "string" in _types(schema, {"string"}) and not _problem_of(format=form):
            out["format"] = form
            if longest := _LONGEST.get(form):
                out.setdefault("maxLength", longest)
        self._add_items(schema, out, where)
        self._add_properties(schema, out, where)
        self._add_names(schema, out, where)
        self._add_choices(schema, out, where, shared)
        if self._loosely:
            self._leave_out_what_clashes(out, where)
        if not (shared or joined):
            _close(out)
        return out

    # ---- what is left out --------------------------------------------------------------

    def _leave_out(self, key: str, where: str) -> None:
        if not self._loosely:
            raise InvalidGrammar(
                f"{where} uses the keyword {key!r}, which is not supported.",
                hint="GuardedLLM and the adapters hold the rest, and check the answer for it.",
            )
        self.is_all = False

    def _leave_out_what_clashes(self, out: dict[str, Any], where: str) -> None:
        """Leave out keywords that llguidance cannot hold in combination, if they can be checked."""
        stub = _stub(out)
        while problem := _problem_of(**stub):
            if "nsatisfiable" in problem:
                return  # no value passes a check either; the compiler will say so
            there = [key for key in _AT_TIMES_HELD if key in stub]
            cures = (k for k in there if not _problem_of(**_without(stub, k)))
            key = next(cures, there[0] if there else None)
            if key is None:
                return
            if key == "pattern" and python_pattern(out[key]) is None:
                raise InvalidGrammar(f"{where} has the pattern {out[key]!r}, which is not known.")
            del stub[key], out[key]
            self.is_all = False
            if key == "patternProperties":  # otherwise properties that match would be forbidden
                stub["additionalProperties"] = out["additionalProperties"] = True

    # ---- arrays and objects --------------------------------------------------------------

    def _add_items(self, schema: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
        if "prefixItems" in schema:
            out["prefixItems"] = self._list(schema["prefixItems"], f"{where}.prefixItems")
        if "items" in schema:
            rest = schema["items"]
            out["items"] = rest if rest is False else self._schema(rest, f"{where}.items")

    def _add_properties(self, schema: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
        for key in ("properties", "patternProperties"):
            if key in schema:
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

    def _add_names(self, schema: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
        """Hold the names of properties if they are listed or match a pattern."""
        if "propertyNames" not in schema:
            return
        names = self._resolved(schema["propertyNames"])
        others = out.get("additionalProperties", True)
        value = {} if others is True else others
        pattern = _pattern_of_names(names)
        if out.keys() & {"properties", "patternProperties"} or others is False:
            self._leave_out("propertyNames", where)
        elif listed := _strings(names):
            out["properties"] = dict.fromkeys(listed, value)
            out["additionalProperties"] = False
        elif pattern is not None and not _problem_of(pattern=pattern):
            out["patternProperties"] = {pattern: value}
            out["additionalProperties"] = False
        else:
            self._leave_out("propertyNames", where)

    def _closed(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same schema, without properties that neither it nor a schema joined to it names."""
        names = self._named(schema, depth=0)
        if names is None or schema.keys() & {"additionalProperties", "patternProperties"}:
            return schema
        own = schema.get("properties", {})
        named: dict[str, Any] = {**{name: {} for name in sorted(names)}, **own}
        closed = {**schema, "properties": named, "additionalProperties": False}
        if not schema.keys() & {"anyOf", "oneOf"}:  # in a choice only the chosen branch counts
            del closed["unevaluatedProperties"]
        return closed

    def _named(self, schema: Any, *, depth: int) -> set[str] | None:
        """All properties that a schema names; None if it allows others."""
        if depth > 8 or not isinstance(schema, Mapping):
            return None
        if "patternProperties" in schema or schema.get("additionalProperties", False) is not False:
            return None
        names = set(schema.get("properties", ()))
        inner = [s for key in _CHOICES for s in schema.get(key, ())]
        if "$ref" in schema:
            inner.append(self._definition(schema["$ref"]))
        for one in inner:
            more = self._named(one, depth=depth + 1)
            if more is None:
                return None
            names |= more
        return names

    # ---- choices and references ------------------------------------------------------------

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
            place = f"{where}.{key}"
            branches = schema[key]
            if key != "allOf":  # a branch that no value follows does not count
                branches = [b for b in branches if b is not False] or branches
            tag = _discriminator(schema) if key == "oneOf" else ""
            together = key == "allOf" and len(branches) > 1
            out[key] = self._list(
                branches, place, shared=shared or crowded or together, required=tag
            )
            if key == "oneOf" and "anyOf" not in schema and self._is_any_of(branches, tag):
                out["anyOf"] = out.pop("oneOf")

    def _is_any_of(self, branches: list[Any], tag: str) -> bool:
        """Whether oneOf can become anyOf. llguidance supports only the latter."""
        apart = self._told_apart(branches, tag)
        self.is_all = self.is_all and apart
        return apart or self._loosely

    def _told_apart(self, branches: list[Any], tag: str) -> bool:
        """Whether the values of one property exclude that an object follows two branches.

        llguidance finds that out by itself, but not through references.
        """
        objects = [self._resolved(branch) for branch in branches]
        if not objects or not all(
            isinstance(o, Mapping) and o.get("type") == "object" for o in objects
        ):
            return False
        names = {tag} if tag else set.intersection(*map(_required, objects))
        for name in names:
            seen: list[str] = []
            for schema in objects:
                choices = _choices(self._resolved(schema.get("properties", {}).get(name)))
                seen += choices or [""] * 2
            if len(seen) == len(set(seen)):
                return True
        return False

    def _list(self, schemas: list[Any], where: str, **options: Any) -> list[Any]:
        out = []
        for i, schema in enumerate(schemas):
            if options.get("required") and isinstance(schema, Mapping) and "$ref" in schema:
                name = self._reference(schema["$ref"], f"{where}[{i}]", **options)
                out.append({"$ref": f"#/$defs/{name}"})
            else:
                out.append(self._schema(schema, f"{where}[{i}]", **options))
        return out

    def _reference(self, reference: str, where: str, *, shared: bool, required: str = "") -> str:
        """The name, among the definitions, of what a reference points to."""
        key = (reference, shared, required)
        if key not in self._names:
            target = self._definition(reference)
            name = reference.rpartition("/")[2]
            self._names[key] = f"{name}_{len(self._names)}" if shared or required else name
            self._definitions[self._names[key]] = self._schema(
                target, f"{where} -> {reference}", shared=shared, required=required
            )
        return self._names[key]

    def _definition(self, reference: str) -> Any:
        return self._root["$defs"][reference.rpartition("/")[2]]

    def _resolved(self, schema: Any) -> Any:
        for _ in range(8):  # references to references, which may be circular
            if not (isinstance(schema, Mapping) and "$ref" in schema):
                break
            schema = self._definition(schema["$ref"])
        return schema


def _simpler(schema: Mapping[str, Any], *, alone: bool) -> Mapping[str, Any]:
    """The same schema in supported keywords, where that is possible.

    Args:
        schema: in the normal form.
        alone: no other schema applies to the same value.
    """
    out = dict(schema)
    if out.get("maxItems", 2) <= 1:
        out.pop("uniqueItems", None)
    if alone:
        for key, plain in (
            ("unevaluatedProperties", "additionalProperties"),
            ("unevaluatedItems", "items"),
        ):
            if key in out:  # without other schemas it means the same as the plain one
                out.setdefault(plain, out.pop(key))
    for key in ("unevaluatedProperties", "unevaluatedItems"):
        if out.get(key) in (True, {}):
            del out[key]
    if "if" not in out:
        out.pop("then", None), out.pop("else", None)
    if "contains" not in out:
        out.pop("minContains", None), out.pop("maxContains", None)
    return out


def _stub(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of one schema, with empty schemas inside it."""
    stub = {k: value for k, value in schema.items() if k not in _TREATED or k == "format"}
    for key in ("properties", "patternProperties"):
        if key in schema:
            stub[key] = {name: inner and {} for name, inner in schema[key].items()}
    if "additionalProperties" in schema:
        stub["additionalProperties"] = schema["additionalProperties"] and {}
    return stub


def _is_held(key: str) -> bool:
    """Whether llguidance knows a keyword. It looks at the names before the values."""
    return "Unimplemented keys" not in _problem_of(**{key: True})


def _problem_of(**schema: Any) -> str:
    """What llguidance has against a schema; "" without it, since then nothing is held."""
    return _problem(json.dumps(schema))


@lru_cache(maxsize=4096)
def _problem(schema: str) -> str:
    try:
        from llguidance import LLMatcher
    except ImportError:
        return ""
    grammar = f'{{"grammars": [{{"json_schema": {schema}}}]}}'
    _, problems = LLMatcher.validate_grammar_with_warnings(grammar)
    return "; ".join(problems)


def _without(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}


def _pattern_of_names(names: Any) -> str | None:
    """The pattern that names of properties must match, if there is no other limit on them."""
    if not isinstance(names, Mapping):
        return None
    limits = names.keys() - {"type", "format"}
    if limits == {"pattern"}:
        return str(names["pattern"])
    if limits and limits <= {"minLength", "maxLength"}:
        return f"^(?s:.{{{names.get('minLength', 0)},{names.get('maxLength', '')}}})$"
    return None


def _strings(schema: Any) -> list[str]:
    """The values of an enumeration of strings; empty for any other schema."""
    if not isinstance(schema, Mapping):
        return []
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return values if all(isinstance(value, str) for value in values) else []


def _discriminator(schema: Mapping[str, Any]) -> str:
    """The name of the property that distinguishes the branches, as pydantic and OpenAPI give it."""
    named = schema.get("discriminator")
    return str(named["propertyName"]) if named else ""


def _close(schema: dict[str, Any]) -> None:
    """Allow only the named properties, if the schema leaves that open."""
    if "additionalProperties" in schema:
        return
    named, required = schema.get("properties"), _required(schema)
    if named is None:
        closed = "patternProperties" in schema and not required
    else:
        closed = not schema.keys() & {"patternProperties", "minProperties"}
    if closed and required <= (named or {}).keys():
        schema["additionalProperties"] = False


def _types(schema: Mapping[str, Any], default: set[str]) -> set[str]:
    named = schema.get("type")
    return default if named is None else {named} if isinstance(named, str) else set(named)


def _required(schema: Mapping[str, Any]) -> set[str]:
    return set(schema.get("required", ()))


def _choices(schema: Any) -> list[str]:
    """The values of an enumeration, as JSON; empty for any other schema."""
    if not isinstance(schema, Mapping):
        return []
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return [json.dumps(value) for value in values]
