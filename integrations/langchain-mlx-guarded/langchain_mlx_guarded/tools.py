"""Tools of LangChain as the OpenAI-style ones that the backend takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.tools.base import create_schema_from_function
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from mlx_guarded_llm.errors import InvalidRequest

Tool = dict[str, Any] | type | Callable[..., Any] | BaseTool

_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPPINGS = ("$defs", "definitions", "patternProperties", "properties")
_SINGLE = ("additionalProperties", "items", "not")


def openai_tool(tool: Tool, *, strict: bool | None = None) -> dict[str, Any]:
    """A tool in OpenAI's form, as `convert_to_openai_tool` of LangChain makes it.

    Two things differ. LangChain writes out what references lead to, and anything where
    they lead in circles; here those are kept, since a grammar follows them. And `strict`
    closes objects that name their properties only: an object of free names would be held
    to have none.

    Args:
        tool: a function, class, tool or mapping.
        strict: stands beside the name; True closes objects, False takes any arguments.

    Raises:
        InvalidRequest: it is none of these, or has another `strict` already.
    """
    tool = _from_mcp(tool)
    if isinstance(tool, dict) and not isinstance(tool.get("type", ""), str):
        tool = function_of(tool)  # a schema of several types, which LangChain cannot read
    whole = _parameters(tool)
    try:
        converted = convert_to_openai_tool(_without_references(tool) if whole else tool)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"a tool cannot be offered: {error}") from error
    if "function" not in converted:
        return converted
    function = dict(converted["function"])
    if whole:
        function["parameters"] = whole
    if strict is not None:
        if function.get("strict", strict) is not strict:
            raise InvalidRequest(
                f"strict is {strict}, and the tool {function['name']!r} says otherwise itself."
            )
        function["strict"] = strict
        if strict and "parameters" in function:
            function["parameters"] = closed(function["parameters"])
    return {**converted, "function": function}


def function_of(schema: Mapping[str, Any], name: str = "answer") -> dict[str, Any]:
    """A tool whose arguments are what a JSON Schema describes."""
    parameters = {k: v for k, v in schema.items() if k not in ("title", "description")}
    function = {
        "name": schema.get("title") or name,
        "description": schema.get("description", ""),
        "parameters": parameters,
    }
    return {"type": "function", "function": function}


def schema_of(cls: Any) -> dict[str, Any]:
    """The JSON Schema of a pydantic class of either version, with its references."""
    schema: dict[str, Any] = (
        cls.model_json_schema() if hasattr(cls, "model_json_schema") else cls.schema()
    )
    return schema


def closed(schema: Any) -> Any:
    """A schema whose objects take no properties but those that they name, if they name any."""
    if not isinstance(schema, Mapping):
        return schema
    out = dict(schema)
    for key in _LISTS:
        if isinstance(out.get(key), list):
            out[key] = [closed(inner) for inner in out[key]]
    for key in _MAPPINGS:
        if isinstance(out.get(key), Mapping):
            out[key] = {name: closed(inner) for name, inner in out[key].items()}
    for key in _SINGLE:
        if key in out:
            out[key] = closed(out[key])
    if out.get("properties") and out.get("additionalProperties", True) is True:
        out["additionalProperties"] = False
    return out


def _from_mcp(tool: Tool) -> Tool:
    """A tool as servers of MCP describe it."""
    if isinstance(tool, dict) and "inputSchema" in tool and "name" in tool:
        described = function_of(tool["inputSchema"])["function"]
        description = tool.get("description") or described["description"]
        function = {**described, "name": tool["name"], "description": description}
        return {"type": "function", "function": function}
    return tool


def _parameters(tool: Tool) -> dict[str, Any] | None:
    """A tool's own schema, where LangChain would lose some of it: by references in circles."""
    if isinstance(tool, dict):
        return None  # it is passed on as it is
    if isinstance(tool, BaseTool):
        schema: Any = tool.tool_call_schema
        schema = schema if isinstance(schema, dict) else schema_of(schema)
    elif isinstance(tool, type) and is_basemodel_subclass(tool):
        schema = schema_of(tool)
    elif isinstance(tool, type) or not callable(tool):
        return None
    else:
        try:
            schema = schema_of(_model_of(tool))
        except Exception:  # LangChain says what is wrong with it, in its own words
            return None
    if not _is_circular(schema):
        return None
    bare: dict[str, Any] = function_of(schema)["function"]["parameters"]
    return bare


def _model_of(function: Callable[..., Any]) -> Any:
    return create_schema_from_function(
        function.__name__,
        function,
        filter_args=(),
        parse_docstring=True,
        error_on_invalid_docstring=False,
        include_injected=False,
    )


def _without_references(tool: Any) -> dict[str, Any]:
    """Name and description of a tool whose schema comes from elsewhere."""
    if isinstance(tool, BaseTool):
        name, description = tool.name, tool.description
    elif isinstance(tool, type):
        described = function_of(schema_of(tool), tool.__name__)["function"]
        name, description = described["name"], described["description"]
    else:
        name, description = tool.__name__, _model_of(tool).__doc__ or ""
    return {"name": name, "description": description, "parameters": {}}


def _is_circular(schema: Any) -> bool:
    """Whether references within the schema lead in circles, or to where LangChain cannot go."""
    done: dict[str, bool] = {}  # False while what it leads to is being read

    def leads_back(node: Any) -> bool:
        if isinstance(node, list):
            return any(leads_back(inner) for inner in node)
        if not isinstance(node, Mapping):
            return False
        reference = node.get("$ref")
        if isinstance(reference, str) and not done.get(reference, False):
            target = _target(schema, reference)
            if reference in done or target is None:
                return True
            done[reference] = False
            if leads_back(target):
                return True
            done[reference] = True
        inner = (v for k, v in node.items() if k not in ("$defs", "definitions", "$ref"))
        return any(leads_back(value) for value in inner)

    return leads_back(schema)


def _target(schema: Any, reference: str) -> Any:
    if reference == "#":
        return schema
    if not reference.startswith("#/"):
        return None
    for step in reference[2:].split("/"):
        if not isinstance(schema, Mapping) or step not in schema:
            return None
        schema = schema[step]
    return schema
