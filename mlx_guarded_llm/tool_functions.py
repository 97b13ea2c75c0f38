"""A Python function as a tool: its schema from its signature, its types and its docstring.

`tools=[weather]` offers the function by its name. The text before the first section of
its docstring says what it does; `Args:`, or `:param city:`, what its parameters are; a
parameter with a default may be left out. The function itself is never called here.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import inspect
import re
import types
import uuid
from collections import abc
from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from .errors import InvalidRequest
from .json_values import json_copy, shown

_FORM = 'Or pass it in OpenAI\'s form: {"type": "function", "function": {"name": ...}}.'
_MOST_NESTED = 20  # a type that holds itself has no end
_PLAIN: Mapping[object, dict[str, Any]] = {
    Any: {},
    object: {},
    None: {"type": "null"},
    type(None): {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    datetime.datetime: {"type": "string", "format": "date-time"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.time: {"type": "string", "format": "time"},
    uuid.UUID: {"type": "string", "format": "uuid"},
}
_LISTS = (list, set, frozenset, abc.Sequence, abc.Iterable, abc.Collection, abc.Set)
_MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)
_SECTION = re.compile(r"^(?:([A-Z]\w*(?: \w+)?):\s*$|(\w+)\n-{3,}\s*$|:\w+.*?:)", re.MULTILINE)
_ARGUMENTS = re.compile(r"^(?:Args|Arguments|Parameters):[ \t]*\n((?:[ \t]+.*\n?|[ \t]*\n)+)", re.M)
_ARGUMENT = re.compile(r"(\w+)(?:\s*\([^)]*\))?:\s*(.*)", re.DOTALL)
_FIELD = re.compile(r"^:param(?:\s+[^:]*?)?\s+(\w+):\s*(.*(?:\n[ \t]+.*)*)", re.MULTILINE)


def as_tool(tool: object) -> object:
    """A function, or a pydantic class, in OpenAI's form; anything else as it is.

    Raises:
        InvalidRequest: there is no schema for it; the message names the parameter.
    """
    if isinstance(tool, Mapping) or not callable(tool):
        return tool
    if isinstance(tool, type):
        return _form(tool.__name__, inspect.getdoc(tool), _Types(tool.__name__).class_(tool))
    return _function(tool)


def _function(function: abc.Callable[..., Any]) -> dict[str, Any]:
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise InvalidRequest(
            f"the tool {shown(function)} has no name that it could be called by.",
            hint=f"Write a function around it with `def`. {_FORM}",
        )
    try:
        parameters = inspect.signature(function).parameters.values()
        hints = get_type_hints(function, include_extras=True)
    except (AttributeError, NameError, TypeError, ValueError) as error:
        raise InvalidRequest(
            f"the signature of the tool {name} cannot be read ({error}).", hint=_FORM
        ) from error
    doc = inspect.getdoc(function) or ""
    described = _described(doc)
    reader = _Types(name)
    properties, required = {}, []
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InvalidRequest(
                f"the tool {name} takes {parameter}, which no call can give by name.",
                hint=f"Name each of its parameters. {_FORM}",
            )
        if parameter.name not in hints:
            raise InvalidRequest(
                f"the parameter {parameter.name!r} of the tool {name} has no type.",
                hint=f"Annotate it, as in `{parameter.name}: str`. {_FORM}",
            )
        schema = reader.schema(hints[parameter.name], f"the parameter {parameter.name!r}")
        if parameter.name in described:
            schema.setdefault("description", described[parameter.name])
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        elif isinstance(parameter.default, (bool, int, float, str)):
            schema["default"] = json_copy(parameter.default, parameter.name)
        properties[parameter.name] = schema
    written = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return _form(name, _summary(doc), written | reader.definitions())


def _form(name: str, description: str | None, parameters: Mapping[str, Any]) -> dict[str, Any]:
    told = {"description": description} if description else {}
    return {"type": "function", "function": {"name": name, **told, "parameters": parameters}}


class _Types:
    """Types as JSON Schema.

    Args:
        tool: its name, for messages.
    """

    def __init__(self, tool: str) -> None:
        self._tool = tool
        self._definitions: dict[str, Any] = {}

    def definitions(self) -> dict[str, Any]:
        """The definitions that the schemas refer to, for the root of the whole schema."""
        return {"$defs": self._definitions} if self._definitions else {}

    def class_(self, kind: type) -> dict[str, Any]:
        """The schema of a class that is a tool itself."""
        written = getattr(kind, "model_json_schema", None)
        if not callable(written):
            raise InvalidRequest(
                f"the tool {self._tool} is a class, and none of pydantic's.",
                hint=f"Pass a function. {_FORM}",
            )
        schema: dict[str, Any] = written()
        return schema

    def schema(self, kind: Any, where: str, depth: int = 0) -> dict[str, Any]:
        """A new schema of one type.

        Raises:
            InvalidRequest: JSON Schema has none for it.
        """
        if depth > _MOST_NESTED:
            raise self._no_schema(kind, where)
        try:
            if kind in _PLAIN:
                return dict(_PLAIN[kind])
        except TypeError:  # an unhashable one is handled below, or refused
            pass

        def of(inner: Any) -> dict[str, Any]:
            return self.schema(inner, where, depth + 1)

        origin, inner = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return of(inner[0]) | _annotated(inner[1:])
        if origin in (Required, NotRequired):
            return of(inner[0])
        if origin in (Union, types.UnionType):
            return {"anyOf": [of(one) for one in inner]}
        if origin is Literal:
            return {"enum": json_copy(list(inner), where)}
        if kind is tuple or origin is tuple:
            return self._tuple(inner, of)
        if kind in _LISTS or origin in _LISTS:
            return {"type": "array"} | ({"items": of(inner[0])} if inner else {})
        if kind in _MAPPINGS or origin in _MAPPINGS:
            if inner and inner[0] is not str:
                raise self._no_schema(kind, where)
            values = {"additionalProperties": of(inner[1])} if inner else {}
            return {"type": "object"} | values
        if hasattr(kind, "__supertype__"):  # of NewType
            return of(kind.__supertype__)
        if type(kind).__name__ == "TypeAliasType":
            return of(kind.__value__)
        if isinstance(kind, type):
            return self._class(kind, where, depth)
        raise self._no_schema(kind, where)

    def _class(self, kind: type, where: str, depth: int) -> dict[str, Any]:
        if issubclass(kind, enum.Enum):
            return {"enum": json_copy([member.value for member in kind], where)}
        written = getattr(kind, "model_json_schema", None)
        if callable(written):
            schema: dict[str, Any] = written()
            for name, definition in schema.pop("$defs", {}).items():
                if self._definitions.setdefault(name, definition) != definition:
                    raise InvalidRequest(
                        f"the tool {self._tool} takes two types that are called {name}.",
                        hint=f"Rename one of them. {_FORM}",
                    )
            return schema
        required: abc.Collection[str]
        if is_typeddict(kind):
            required = getattr(kind, "__required_keys__", frozenset())
        elif dataclasses.is_dataclass(kind):
            required = [
                field.name
                for field in dataclasses.fields(kind)
                if field.default is field.default_factory is dataclasses.MISSING
            ]
        else:
            raise self._no_schema(kind, where)
        try:
            hints = get_type_hints(kind, include_extras=True)
        except (NameError, TypeError) as error:
            raise self._no_schema(kind, where) from error
        properties = {
            name: self.schema(inner, f"{name!r} of {where}" if not depth else where, depth + 1)
            for name, inner in hints.items()
        }
        return {
            "type": "object",
            "properties": properties,
            "required": [name for name in hints if _is_required(hints[name], name in required)],
            "additionalProperties": False,
        }

    @staticmethod
    def _tuple(inner: tuple[Any, ...], of: abc.Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        if not inner:
            return {"type": "array"}
        if inner[1:] == (...,):
            return {"type": "array", "items": of(inner[0])}
        number = len(inner)
        items = [of(one) for one in inner]
        return {"type": "array", "prefixItems": items, "minItems": number, "maxItems": number}

    def _no_schema(self, kind: Any, where: str) -> InvalidRequest:
        return InvalidRequest(
            f"{where} of the tool {self._tool} has the type {shown(kind)}, "
            "for which no JSON Schema can be told.",
            hint=f"Take what JSON has: str, int, float, bool, lists, dicts of str. {_FORM}",
        )


def _is_required(hint: Any, otherwise: bool) -> bool:
    """Whether a TypedDict's key is required; its class cannot tell from annotations in text."""
    origin = get_origin(hint)
    return origin is Required or (otherwise and origin is not NotRequired)


def _annotated(notes: tuple[Any, ...]) -> dict[str, str]:
    """The description in the metadata of `Annotated`: a text, or an object that has one."""
    for note in notes:
        text = note if isinstance(note, str) else getattr(note, "description", None)
        if isinstance(text, str) and text:
            return {"description": text}
    return {}


def _summary(doc: str) -> str:
    """The text of a docstring before its first section."""
    section = _SECTION.search(doc)
    return doc[: section.start()].strip() if section else doc.strip()


def _described(doc: str) -> dict[str, str]:
    """The description of each parameter in a docstring."""
    told = {name: " ".join(text.split()) for name, text in _FIELD.findall(doc)}
    block = _ARGUMENTS.search(doc)
    if block is None:
        return told
    for entry in re.split(r"\n(?=\S)", inspect.cleandoc("\n" + block[1])):
        found = _ARGUMENT.fullmatch(entry)
        if found:
            told[found[1]] = " ".join(found[2].split())
    return told
