"""Random JSON Schemas of the supported kind, bounded so that a random model ends.

The kind: every type; enum and const; anyOf, allOf of objects, oneOf told apart by a
property; references, to themselves as well; required and optional properties, patterns of
properties; bounds of numbers, of lengths and of counts; patterns, formats, whole multiples.
Numbers and free texts have no end of their own: they are bounded by their schema here, or
by the model's dice.

Left out, though supported: formats whose checks go beyond their form (a 30th of February
is a date by form), multiples of fractions (no check of them is exact), and `{}`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

NAMES = ("a", "name", "x y", "größe", 'quo"te', "n1", "_")
PATTERNS = (
    r"^[a-f]{2,6}$",
    r"^(yes|no|maybe)$",
    r"^\d{3}-\d{4}$",
    r"^[A-Z][a-z]{1,5}( [a-z]{2})?$",
)
FORMATS = ("uuid", "ipv4", "time")


def random_schema(seed: int) -> Schema:
    """The same for the same seed."""
    dice = random.Random(seed)
    schema = _any(dice, 2)
    if dice.random() < 0.2:
        schema = _with_definitions(dice, schema)
    return schema


def _any(dice: random.Random, depth: int) -> Schema:
    leaves: list[Callable[[random.Random], Schema]] = [_string, _integer, _number, _enum, _plain]
    nodes: list[Callable[[random.Random, int], Schema]] = [_object, _array, _choice, _map, _both]
    if depth == 0 or dice.random() < 0.25:
        return dice.choice(leaves)(dice)
    return dice.choice(nodes)(dice, depth - 1)


def _string(dice: random.Random) -> Schema:
    kind = dice.randrange(3)
    if kind == 0:
        return {"type": "string", "pattern": dice.choice(PATTERNS)}
    if kind == 1:
        return {"type": "string", "format": dice.choice(FORMATS)}
    low = dice.randrange(4)
    return {"type": "string", "minLength": low, "maxLength": low + dice.randrange(8)}


def _integer(dice: random.Random) -> Schema:
    low = dice.randrange(-1000, 1000)
    schema: Schema = {"type": "integer", "minimum": low, "maximum": low + dice.randrange(500)}
    if dice.random() < 0.3:
        schema["multipleOf"] = dice.choice((2, 3, 7))
        schema["maximum"] = low + 100
    elif dice.random() < 0.3:
        schema["exclusiveMaximum"] = schema.pop("maximum") + 1
    return schema


def _number(dice: random.Random) -> Schema:
    low = dice.randrange(-50, 50) / 4
    return {"type": "number", "minimum": low, "maximum": low + dice.randrange(1, 40) / 8}


def _enum(dice: random.Random) -> Schema:
    values = [None, True, 3, -1.5, "red", "dark blue", 'a "b"', "é", [1, "x"], {"k": [None]}]
    if dice.random() < 0.3:
        return {"const": dice.choice(values)}
    return {"enum": dice.sample(values, dice.randint(1, 5))}


def _plain(dice: random.Random) -> Schema:
    return {"type": dice.choice(["boolean", "null", ["boolean", "null"]])}


def _object(dice: random.Random, depth: int) -> Schema:
    names = dice.sample(NAMES, dice.randint(0, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _any(dice, depth) for name in names},
        "required": [name for name in names if dice.random() < 0.6],
    }
    if dice.random() < 0.3:
        schema["additionalProperties"] = False
    if dice.random() < 0.3:
        schema |= {"title": "An object", "description": "with notes", "default": {}}
    return schema


def _map(dice: random.Random, depth: int) -> Schema:
    values = _any(dice, min(depth, 1))
    if dice.random() < 0.4:
        return {
            "type": "object",
            "patternProperties": {"^k[0-9]$": values},
            "additionalProperties": False,
            "maxProperties": 3,
        }
    return {"type": "object", "additionalProperties": values, "maxProperties": 2}


def _array(dice: random.Random, depth: int) -> Schema:
    low = dice.randrange(3)
    most = low + dice.randrange(3)
    if dice.random() < 0.3:
        first = [_any(dice, depth) for _ in range(dice.randint(1, 3))]
        return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}
    return {"type": "array", "items": _any(dice, depth), "minItems": low, "maxItems": most}


def _choice(dice: random.Random, depth: int) -> Schema:
    if dice.random() < 0.5:
        return {"anyOf": [_any(dice, depth) for _ in range(dice.randint(1, 3))]}
    branches = []
    for kind in ("cat", "dog"):
        branch = _object(dice, depth)
        branch["properties"]["kind"] = {"const": kind}
        branch["required"].append("kind")
        branches.append(branch)
    return {"oneOf": branches}


def _both(dice: random.Random, depth: int) -> Schema:
    """An object that two schemas describe together, and that has nothing else."""
    left, right = _any(dice, depth), _any(dice, depth)
    return {
        "type": "object",
        "allOf": [
            {"properties": {"left": left}, "required": ["left"]},
            {"properties": {"right": right}, "required": ["right"]},
        ],
        "maxProperties": 2,
    }


def _with_definitions(dice: random.Random, schema: Schema) -> Schema:
    node = {
        "type": "object",
        "properties": {"value": _any(dice, 1), "next": {"$ref": "#/$defs/Node"}},
        "required": ["value"],
    }
    return {
        "type": "object",
        "properties": {"here": {"$ref": "#/$defs/Here"}, "list": {"$ref": "#/$defs/Node"}},
        "required": ["here"],
        "$defs": {"Here": schema, "Node": node},
    }
