"""Chat messages of LlamaIndex as OpenAI-style mappings, and back.

Only the text and the calls of an answer go into a prompt: neither its thinking nor what a
provider's server did for it. Of `additional_kwargs` only tool calls, those that could not be
read, the id of the call that a tool answers, and a name are used. The caller's messages are
not changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.turns import take_turns

_ROLES = {
    MessageRole.FUNCTION: "tool",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}


def to_openai(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as the backend takes them.

    Consecutive messages of one role become one, because many chat templates want roles to
    alternate.

    Args:
        messages: tool calls may be `ToolCallBlock`s or, as older agents write them, stand
            under `additional_kwargs["tool_calls"]`. Where both are, the blocks count. One
            whose arguments are no JSON object is text.

    Raises:
        InvalidRequest: something that is no message, or a block that is no text.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise InvalidRequest(
            f"messages is a {type(messages).__name__}; it must be a list of ChatMessages.",
            hint="complete() takes a string.",
        )
    return take_turns(_to_openai(message, f"messages[{i}]") for i, message in enumerate(messages))


def _to_openai(message: ChatMessage, where: str) -> dict[str, Any]:
    if not isinstance(message, ChatMessage):
        raise InvalidRequest(f"{where} is a {type(message).__name__}; it must be a ChatMessage.")
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    role = _ROLES.get(message.role, message.role.value)
    for block in message.blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ToolCallBlock):
            calls.append(call_to_openai(block.tool_call_id, block.tool_name, block.tool_kwargs))
        elif role != "assistant" and not isinstance(block, (ThinkingBlock, CachePoint)):
            raise InvalidRequest(
                f"{where} has a block of type {block.block_type!r}; only text is taken.",
                hint="Turn it into a TextBlock first.",
            )
    extra = message.additional_kwargs
    found = calls or older_calls(message, where)
    calls = [call for call in found if _is_read(call)]
    # What could not be read as a call is shown to the model as it wrote it.
    unread = [call["function"]["arguments"] for call in found if call not in calls]
    unread += [call["text"] for call in extra.get("invalid_tool_calls") or ()]
    # As `ChatMessage.content` joins them.
    content = None if calls and not texts else "\n".join(texts)
    if unread:
        content = "\n".join(filter(None, (content, *unread)))
    plain: dict[str, Any] = {"role": role, "content": content}
    if isinstance(extra.get("name"), str) and extra["name"]:
        plain["name"] = extra["name"]
    if calls:
        plain["tool_calls"] = calls
    if plain["role"] == "tool":
        plain["tool_call_id"] = extra.get("tool_call_id")
        if message.role == MessageRole.FUNCTION:  # of the time before calls had ids
            plain["tool_call_id"] = plain["tool_call_id"] or extra.get("name")
    return plain


def _is_read(call: Mapping[str, Any]) -> bool:
    """Whether the arguments of a call are by name, or JSON that says so."""
    return isinstance(_arguments(call["function"]["arguments"] or {}), Mapping)


def call_to_openai(
    identity: str | None, name: str, arguments: Mapping[str, Any] | str
) -> dict[str, Any]:
    """A tool call in OpenAI form, its arguments as JSON text."""
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return call if identity is None else {"id": identity, **call}


def older_calls(message: ChatMessage, where: str = "the message") -> list[dict[str, Any]]:
    """The calls under `additional_kwargs["tool_calls"]`, in OpenAI form.

    Raises:
        InvalidRequest: one of them is neither an OpenAI call nor a `ToolSelection`.
    """
    calls = []
    for item in message.additional_kwargs.get("tool_calls") or ():
        plain = item.model_dump() if hasattr(item, "model_dump") else item
        function = plain.get("function") if isinstance(plain, Mapping) else None
        if isinstance(item, ToolSelection):
            calls.append(call_to_openai(item.tool_id, item.tool_name, item.tool_kwargs))
        elif isinstance(function, Mapping) and function.get("name"):
            arguments = function.get("arguments") or {}
            calls.append(call_to_openai(plain.get("id"), function["name"], arguments))
        else:
            raise InvalidRequest(
                f"{where} has a tool call that is a {type(item).__name__}; it must have the "
                'form {"id": ..., "function": {"name": ..., "arguments": ...}}.'
            )
    return calls


def from_openai(messages: Iterable[Mapping[str, Any]]) -> list[ChatMessage]:
    """OpenAI-style messages for another LLM of LlamaIndex."""
    return [_from_openai(message) for message in messages]


def _from_openai(message: Mapping[str, Any]) -> ChatMessage:
    content, calls = message.get("content"), message.get("tool_calls")
    parts = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
    blocks: list[Any] = [TextBlock(text=part) for part in parts if part or not calls]
    extra: dict[str, Any] = {}
    if calls:
        blocks += [
            ToolCallBlock(
                tool_call_id=call.get("id"),
                tool_name=call["function"]["name"],
                tool_kwargs=_arguments(call["function"].get("arguments") or {}),
            )
            for call in calls
        ]
    if message.get("tool_call_id"):
        extra["tool_call_id"] = message["tool_call_id"]
    return ChatMessage(role=message["role"], blocks=blocks, additional_kwargs=extra)


def _arguments(given: Any) -> Any:
    """By name, as most services want them; as text what is no JSON object."""
    if not isinstance(given, str):
        return given
    try:
        value = json.loads(given)
    except (ValueError, RecursionError):
        return given
    return value if isinstance(value, dict) else given
