"""Whether a tool call is one of those that were offered.

Calls from every parser, a local model's or another library's, go through this one check: the
name was offered, and the arguments fit its schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .grammar.validation import mismatch


def callable_tools(
    tools: Iterable[Mapping[str, Any]] | None, choice: object
) -> list[Mapping[str, Any]]:
    """The tools that may be called.

    Args:
        tools: in OpenAI's form.
        choice: `tool_choice`: "none" hides all; one that names a function hides the others.
    """
    if choice == "none":
        return []
    if isinstance(choice, Mapping):
        name = choice["function"]["name"]
        return [tool for tool in tools or () if tool["function"]["name"] == name]
    return list(tools or ())


def misfit(name: str, arguments: object, tools: Iterable[Mapping[str, Any]]) -> str:
    """Why a call fits none of the offered tools; "" when it fits one.

    Args:
        name: of the function that is called.
        arguments: by name.
        tools: what was offered, in OpenAI's form.
    """
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    if name not in functions:
        offered = ", ".join(map(repr, functions)) or "none"
        return f"no tool {name!r} was offered; there are: {offered}."
    if not isinstance(arguments, Mapping):
        return f"the arguments of {name!r} are no JSON object."
    schema = functions[name].get("parameters")
    lenient = functions[name].get("strict") is False
    if isinstance(schema, Mapping) and not lenient and (why := mismatch(arguments, schema)):
        return f"the arguments of {name!r} do not fit: {why}"
    return ""
