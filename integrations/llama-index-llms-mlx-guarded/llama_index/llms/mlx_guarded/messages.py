"""Chat messages of LlamaIndex as OpenAI-style mappings, and back.

Thinking never goes into a prompt, and nothing of `additional_kwargs` does but tool calls
and the id of the call that a tool answers. The caller's messages are only read.
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
from mlx_guarded_llm.request import take_turns

_ROLES = {
    MessageRole.FUNCTION: "tool",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}


def to_openai(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as the backend takes them.

    Neighbours of one role become one message, because many chat templates want roles to
    take turns.

    Args:
        messages: tool calls may be `ToolCallBlock`s or, as older agents write them, stand
            under `additional_kwargs["tool_calls"]`. Where both are, the blocks count.

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
    for block in message.blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ToolCallBlock):
            calls.append(call_to_openai(block.tool_call_id, block.tool_name, block.tool_kwargs))
        elif not isinstance(block, (ThinkingBlock, CachePoint)):
            raise InvalidRequest(
                f"{where} has a block of type {block.block_type!r}; only text is taken.",
                hint="Turn it into a TextBlock first.",
            )
    calls = calls or older_calls(message, where)
    plain: dict[str, Any] = {
        "role": _ROLES.get(message.role, message.role.value),
        # As `ChatMessage.content` joins them.
        "content": None if calls and not texts else "\n".join(texts),
    }
    if calls:
        plain["tool_calls"] = calls
    if plain["role"] == "tool":
        plain["tool_call_id"] = message.additional_kwargs.get("tool_call_id")
    return plain


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
                tool_kwargs=call["function"].get("arguments") or {},
            )
            for call in calls
        ]
        extra["tool_calls"] = list(calls)  # for LLMs that do not know the block yet
    if message.get("tool_call_id"):
        extra["tool_call_id"] = message["tool_call_id"]
    return ChatMessage(role=message["role"], blocks=blocks, additional_kwargs=extra)
