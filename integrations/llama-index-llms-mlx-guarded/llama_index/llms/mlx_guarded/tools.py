"""Tools, the choice of one, and the calls in an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatResponse, ToolCallBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool, FunctionTool, ToolMetadata

from mlx_guarded_llm.errors import InvalidRequest

from .errors import NoToolCall
from .messages import call_to_openai, older_calls


def tools_to_openai(
    tools: Sequence[BaseTool | Mapping[str, Any] | Callable[..., Any]],
) -> list[Any]:
    """Tools in OpenAI form, under their own names.

    Args:
        tools: of LlamaIndex; functions and pydantic classes, too; mappings in OpenAI's
            form, or in the plainer ones of Anthropic and of servers of MCP.
    """
    return [_tool_to_openai(tool) for tool in tools]


def _tool_to_openai(tool: Any) -> Any:
    if isinstance(tool, Mapping):
        return _mapping_to_openai(tool)
    if isinstance(tool, type) and issubclass(tool, BaseModel):
        schema = tool.model_json_schema()
        return _function(schema.get("title", tool.__name__), schema.get("description", ""), schema)
    if not isinstance(tool, BaseTool) and callable(tool):
        tool = FunctionTool.from_defaults(tool)
    if not isinstance(tool, BaseTool):
        raise InvalidRequest(f"a tool is a {type(tool).__name__}; it must be a tool of LlamaIndex.")
    # `to_openai_tool` spells the name as OpenAI wants it, and calls come back under that;
    # `get_parameters_dict` leaves out references and what they lead to.
    about = tool.metadata
    plain = type(about).get_parameters_dict is ToolMetadata.get_parameters_dict
    if plain and about.fn_schema is not None:
        return _function(about.name, about.description, about.fn_schema.model_json_schema())
    return _function(about.name, about.description, about.get_parameters_dict())


def _mapping_to_openai(tool: Mapping[str, Any]) -> Any:
    if "function" in tool or "name" not in tool:
        return tool
    forms = ("parameters", "input_schema", "inputSchema")
    schema: Mapping[str, Any] = next((tool[form] for form in forms if form in tool), {})
    return _function(tool["name"], tool.get("description") or "", schema)


def _function(name: str | None, description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {k: v for k, v in schema.items() if k not in ("title", "description")}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def choice_to_openai(
    choice: str | bool | Mapping[str, Any] | None, *, required: bool = False
) -> Any:
    """A tool choice in OpenAI form.

    Args:
        choice: "auto", "none", "required", "any" or True (the same), a tool's name, or a
            mapping that has one, in OpenAI's form or a plainer one. None and False leave
            it to `required`.
        required: the model must call a tool.
    """
    if choice is None or choice is False:
        return "required" if required else "auto"
    if choice is True or choice == "any":
        return "required"
    if isinstance(choice, str) and choice not in ("auto", "none", "required"):
        return {"type": "function", "function": {"name": choice}}
    if isinstance(choice, Mapping) and "function" not in choice and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def selections(response: ChatResponse, *, error_on_no_tool_call: bool) -> list[ToolSelection]:
    """The calls in an answer.

    Raises:
        NoToolCall: there are none.
        InvalidRequest: the arguments of one are no JSON object.
    """
    message = response.message
    calls = [
        call_to_openai(block.tool_call_id, block.tool_name, block.tool_kwargs)
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ] or older_calls(message)
    if not calls and error_on_no_tool_call:
        raise NoToolCall(
            f"the answer has no tool call; it says {(message.content or '')[:200]!r}.",
            hint="Pass tool_required=True, or error_on_no_tool_call=False.",
        )
    return [
        ToolSelection(
            tool_id=call.get("id") or "",
            tool_name=call["function"]["name"],
            tool_kwargs=_arguments(call["function"]),
        )
        for call in calls
    ]


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    # ToolSelection would make {} of anything else, and the tool be called without them.
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(
            f"the arguments of the call of {function['name']!r} are no JSON object."
        )
    return arguments
