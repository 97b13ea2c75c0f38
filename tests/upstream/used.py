"""Which names of mlx and mlx-lm the library uses, and what they look like in what is installed.

python -m tests.upstream.used     writes signatures.json anew, for a version that was adapted to
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import mlx_guarded_llm

ROOT = Path(mlx_guarded_llm.__file__).parent
PACKAGES = ("mlx", "mlx_lm")
KNOWN = Path(__file__).with_name("signatures.json")


def used(source: str) -> Iterator[str]:
    """The names of mlx and mlx-lm that a module imports, or takes from a module of theirs."""
    tree = ast.parse(source)
    modules: dict[str, str] = {}  # by the name that they have here
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in PACKAGES and alias.asname:
                    modules[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            theirs = str(node.module).partition(".")[0] in PACKAGES
            yield from (f"{node.module}.{alias.name}" for alias in node.names if theirs)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name)) if name in modules:
                yield f"{modules[name]}.{node.attr}"


def sources() -> list[str]:
    """The library's modules, without its package for tests."""
    files = sorted(file for file in ROOT.rglob("*.py") if "testing" not in file.parts)
    return [file.read_text(encoding="utf-8") for file in files]


@cache
def all_used() -> set[str]:
    """The names that the library uses."""
    return {name for source in sources() for name in used(source)}


@cache
def attributes() -> set[str]:
    """Every word behind a dot in the library: the methods that it may call are among them."""
    return {
        node.attr
        for source in sources()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
    }


def describe(name: str) -> dict[str, str]:
    """What a name looks like, and for a class the methods that are used; empty if there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        value = getattr(import_module(module), attribute)
    except (ImportError, AttributeError):
        return {}
    if not inspect.isclass(value):
        return {name: _signature(value)}
    called = {word for word in attributes() if not word.startswith("_")} | {"__init__"}
    if module == "mlx.core":  # an array has methods of every name
        called = {"__init__"}
    methods = {
        f"{name}.{key}": _signature(method)
        for key, method in vars(value).items()
        if callable(method) and key in called
    }
    return {name: "class", **methods}


def describe_all(names: set[str]) -> dict[str, str]:
    """What all of them look like in what is installed."""
    found: dict[str, str] = {}
    for name in sorted(names):
        found |= describe(name)
    return found


def versions() -> dict[str, str]:
    """Of what is installed."""
    return {name: metadata.version(name) for name in ("mlx", "mlx-lm")}


def is_used(name: str) -> bool:
    """Whether the library still uses a name, or a method of a class."""
    owner, _, word = name.rpartition(".")
    return name in all_used() or (owner in all_used() and word in {*attributes(), "__init__"})


def changes(known: dict[str, str], found: dict[str, str]) -> list[str]:
    """What is not as it was, a line for each. What is new changes nothing for us."""
    lines = []
    for name, signature in known.items():
        if name not in found:
            lines.append(f"{name} is gone; it was {signature}")
        elif found[name] != signature:
            lines.append(f"{name} was {signature} and is {found[name]}")
    return lines


def _signature(value: Any) -> str:
    """The parameters by name, with "=" where they may be left out. Types may change."""
    overloads = getattr(value, "__nb_signature__", None)  # of nanobind, in which mlx is written
    if overloads:
        return " or ".join(dict.fromkeys(_parsed(str(overload[0])) for overload in overloads))
    if not callable(value):
        return type(value).__name__
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return "callable"
    plain = [
        parameter.replace(
            annotation=inspect.Parameter.empty,
            default=... if parameter.default is not parameter.empty else parameter.empty,
        )
        for parameter in parameters
    ]
    return str(inspect.Signature(plain)).replace("Ellipsis", "")


def _parsed(definition: str) -> str:
    """The same of a definition with types, and with a backslash and a number for defaults."""
    tree = ast.parse(re.sub(r"\\\d+", "...", definition) + ": ...").body[0]
    assert isinstance(tree, ast.FunctionDef)
    for node in ast.walk(tree.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    defaults = [ast.Name("", ast.Load()) for _ in tree.args.defaults]
    tree.args.defaults[:] = defaults
    tree.args.kw_defaults[:] = [d and ast.Name("", ast.Load()) for d in tree.args.kw_defaults]
    return f"({ast.unparse(tree.args)})"


if __name__ == "__main__":
    KNOWN.write_text(
        json.dumps({"versions": versions(), "names": describe_all(all_used())}, indent=1) + "\n",
        encoding="utf-8",
    )
    sys.stdout.write(f"written: {KNOWN}\n")
