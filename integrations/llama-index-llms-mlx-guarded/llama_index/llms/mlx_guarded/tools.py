"""Tools, the choice of one, and the calls in an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatResponse, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection

from mlx_guarded_llm.errors import InvalidRequest

from .errors import NoToolCall
from .messages import call_to_openai, older_calls

if TYPE_CHECKING:
    from llama_index.core.tools import BaseTool


def tools_to_openai(tools: Sequence[BaseTool | Mapping[str, Any]]) -> list[Any]:
    """Tools in OpenAI form; mappings are taken to be in it already."""
    return [
        tool if isinstance(tool, Mapping) else tool.metadata.to_openai_tool(skip_length_check=True)
        for tool in tools
    ]


def choice_to_openai(choice: str | Mapping[str, Any] | None, *, required: bool = False) -> Any:
    """A tool choice in OpenAI form.

    Args:
        choice: "auto", "none", "required", "any" (the same), a tool's name, or a mapping
            in OpenAI form. None leaves it to `required`.
        required: the model must call a tool.
    """
    if choice is None:
        return "required" if required else "auto"
    if choice == "any":
        return "required"
    if isinstance(choice, str) and choice not in ("auto", "none", "required"):
        return {"type": "function", "function": {"name": choice}}
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
