"""LangChain's messages as the OpenAI-style ones that the backend takes.

Only the text and the calls of an earlier answer are sent on. Its thinking, what a provider's
server did for it and its provenance are never part of a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.turns import take_turns

_TEXT = frozenset({"text", "text-plain"})
_WORDS = _TEXT | {"output_text", "refusal"}  # of an answer
_CALLS = frozenset({"tool_use", "function_call", "tool_call"})
_ROLES = {"human": "user", "ai": "assistant", "function": "tool"}

Dialogue = list[dict[str, Any]]


def to_openai(messages: Sequence[BaseMessage]) -> Dialogue:
    """Translate a conversation. The messages given are not changed.

    Consecutive messages of one role become one, because many chat templates want roles to
    alternate. A tool's failure (`status="error"`) becomes text that the model sees.

    Raises:
        InvalidRequest: a message or block that a text model cannot take; it is named.
    """
    return take_turns(
        part for i, message in enumerate(messages) for part in _translate(message, f"messages[{i}]")
    )


def with_names(message: Any, names: Mapping[str, str]) -> Any:
    """A message with tools renamed, in its calls or as the tool whose result it is.

    Args:
        message: it is not changed.
        names: the new names by the old ones.
    """
    if isinstance(message, ToolMessage):
        return message.model_copy(update={"name": names.get(message.name or "", message.name)})
    if not isinstance(message, AIMessage):
        return message
    update: dict[str, Any] = {"tool_calls": [_named(call, names) for call in message.tool_calls]}
    if isinstance(message.content, list):  # some providers keep the calls here, too
        update["content"] = [
            _named(block, names) if isinstance(block, dict) else block for block in message.content
        ]
    return message.model_copy(update=update)


def without_calls(content: list[Any], *, but: Collection[str]) -> list[Any]:
    """The blocks of an answer, of its calls only those with these ids."""
    return [
        block
        for block in content
        if not (isinstance(block, dict) and block.get("type") in _CALLS)
        or (block.get("call_id") or block.get("id")) in but
    ]


def _named(holder: Any, names: Mapping[str, str]) -> Any:
    name = holder.get("name")
    return {**holder, "name": names[name]} if name in names else holder


def _translate(message: BaseMessage, where: str) -> Dialogue:
    if isinstance(message, AIMessage):
        return [_answer(message, where)]
    if isinstance(message, ToolMessage):
        text = _text(message.content, where)
        return [_tool_answer(message.tool_call_id, text, message.status, message.name)]
    if isinstance(message, FunctionMessage):
        return [_tool_answer(message.name, _text(message.content, where), "", message.name)]
    if isinstance(message, HumanMessage):
        return _human(message, where)
    if isinstance(message, SystemMessage):
        role = message.additional_kwargs.get("__openai_role__", "system")
    elif isinstance(message, ChatMessage):
        role = _ROLES.get(message.role, message.role)
    else:
        raise InvalidRequest(
            f"{where} is a {type(message).__name__}, which cannot be sent to a model."
        )
    return [_plain(role, _text(message.content, where), message.name)]


def _plain(role: str, text: str, name: str | None) -> dict[str, Any]:
    message = {"role": role, "content": text}
    return {**message, "name": name} if name else message


def _tool_answer(
    call_id: str, text: str, status: object, name: str | None = None
) -> dict[str, Any]:
    if status == "error" and not text.lower().startswith("error"):
        text = f"Error: {text}"
    return {**_plain("tool", text, name), "tool_call_id": call_id}


def _human(message: HumanMessage, where: str) -> Dialogue:
    """Anthropic's form puts the answers of tools into the human's message."""
    blocks = message.content if isinstance(message.content, list) else [message.content]
    results = [b for b in blocks if isinstance(b, dict) and b.get("type") == "tool_result"]
    answers = [
        _tool_answer(
            str(block.get("tool_use_id")),
            _text(block.get("content") or "", where),
            "error" if block.get("is_error") else "success",
        )
        for block in results
    ]
    rest = _text(message.content, where, skip=frozenset({"tool_result"}))
    if results and not rest:
        return answers
    return [*answers, _plain("user", rest, message.name)]


def _answer(message: AIMessage, where: str) -> dict[str, Any]:
    text = _said(message.content)
    # What could not be read as a call is shown to the model as it wrote it.
    unread = [_as_written(call["args"] or "") for call in message.invalid_tool_calls]
    said = "\n".join(part for part in (text, *unread) if part)
    answer = _plain("assistant", said, message.name)
    calls = [_call(c["name"], c["args"], c.get("id")) for c in message.tool_calls]
    if not calls and not unread and isinstance(message.content, list):
        calls = [
            _call(block["name"], block.get("input") or {}, block.get("id"))
            for block in message.content
            if isinstance(block, dict) and block.get("type") == "tool_use"
        ]
    return {**answer, "tool_calls": calls} if calls else answer


def _as_written(arguments: str) -> str:
    """The text of a call that could not be read: a stream carries it as a JSON string."""
    try:
        text = json.loads(arguments)
    except ValueError:
        return arguments
    return text if isinstance(text, str) else arguments


def _said(content: str | list[Any]) -> str:
    """The text of an answer or a refusal, without its calls."""
    if isinstance(content, str):
        return content
    texts = []
    for block in content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") in _WORDS:
            texts.append(block.get("text") or block.get("refusal") or "")
    return "".join(texts)


def _call(name: str, arguments: object, call_id: str | None) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    call: dict[str, Any] = {"type": "function", "function": function}
    return {**call, "id": call_id} if call_id else call


def _text(content: Any, where: str, *, skip: frozenset[str] = frozenset()) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for i, block in enumerate(content):
        if isinstance(block, str):
            texts.append(block)
            continue
        kind = block.get("type")
        if kind in skip:
            continue
        if kind not in _TEXT or not isinstance(block.get("text"), str):
            raise InvalidRequest(
                f"{where} has a content block of type {kind!r} at {i}; "
                "only text can be sent to these models.",
                hint="Leave it out, or put what it shows into words.",
            )
        texts.append(block["text"])
    return "".join(texts)
