"""Translate Anthropic's messages into the form that a backend takes.

In Anthropic's form, a message is a list of blocks of several kinds. In ours, each tool result is
a message of its own, and an assistant's message has fields for its thinking and its tool calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..errors import HTTPError, refused

# Claude Code starts its system prompt with this line, which is meant for Anthropic's billing. Part
# of it changes with each session, so a prompt that began with it would never be found in the
# prefix cache.
_BILLING = "x-anthropic-billing-header:"


def as_messages(
    system: str | list[dict[str, Any]] | None, messages: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a conversation in OpenAI's form.

    Raises:
        HTTPError: a part of it is invalid, or cannot be shown to a model.
    """
    written: list[dict[str, Any]] = []
    if system:
        text = _system(system)
        if text:
            written.append({"role": "system", "content": text})
    for i, message in enumerate(messages):
        where = f"messages.{i}"
        role = message.get("role")
        if role not in ("user", "assistant", "system"):
            raise refused(
                f"{where} has the role {str(role)[:80]!r}; it must be user, assistant or system.",
                param=f"{where}.role",
            )
        blocks = list(_blocks(message.get("content"), f"{where}.content", _IN_MESSAGES))
        if role == "assistant":
            written.append(_answer(blocks))
        elif role == "system":
            written.append({"role": "system", "content": _text(blocks, "\n\n")})
        else:
            written += _said(blocks, f"{where}.content")
    return written


def referenced_tools(messages: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The names of the tools that the client's tool search has found so far."""
    return frozenset(
        str(part.get("tool_name"))
        for message in messages
        for block in _dicts(message.get("content"))
        for part in _dicts(block.get("content"))
        if part.get("type") == "tool_reference"
    )


def _dicts(content: object) -> list[dict[str, Any]]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _system(system: str | list[dict[str, Any]]) -> str:
    texts = [block["text"] for _, block in _blocks(system, "system", ("text",))]
    return "\n\n".join(kept for text in texts if (kept := _without_billing(text)))


def _without_billing(text: str) -> str:
    if not text.startswith(_BILLING):
        return text
    return text.partition("\n")[2]


Blocks = Iterable[tuple[str, Mapping[str, Any]]]


def _said(blocks: Blocks, where: str) -> Iterator[dict[str, Any]]:
    """A user's message: first the tool results, then the text."""
    results = [(i, block) for i, (kind, block) in enumerate(blocks) if kind == "tool_result"]
    for i, block in results:
        yield {
            "role": "tool",
            "tool_call_id": block["tool_use_id"],
            "content": _result(block, f"{where}.{i}"),
        }
    text = _text(blocks, "\n\n")
    if text or not results:
        yield {"role": "user", "content": text}


def _answer(blocks: Blocks) -> dict[str, Any]:
    """An assistant's message."""
    message: dict[str, Any] = {"role": "assistant", "content": _text(blocks, "")}
    thinking = "".join(block["thinking"] for kind, block in blocks if kind == "thinking")
    if thinking:
        message["reasoning_content"] = thinking
    calls = [_call(block) for kind, block in blocks if kind == "tool_use"]
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": block["name"], "arguments": block["input"]}
    return {"id": block["id"], "type": "function", "function": function}


def _result(block: Mapping[str, Any], where: str) -> str:
    """The text of a tool result. A failure is said in words: templates have no field for it."""
    parts = _blocks(block.get("content", ""), f"{where}.tool_result.content", _IN_RESULTS)
    text = "\n\n".join(
        part["text"] if kind == "text" else f"The tool {part['tool_name']} can be called now."
        for kind, part in parts
    )
    return f"Error: {text}" if block.get("is_error") else text


def _text(blocks: Blocks, between: str) -> str:
    return between.join(block["text"] for kind, block in blocks if kind == "text")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


# For each kind of block, its required fields and a check of each.
_FIELDS: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    "text": {"text": _is_text},
    "thinking": {"thinking": _is_text},
    "redacted_thinking": {},
    "tool_use": {
        "id": _is_text,
        "name": _is_text,
        "input": lambda value: isinstance(value, dict),
    },
    "tool_result": {"tool_use_id": _is_text},
    "tool_reference": {"tool_name": _is_text},
}
_IN_MESSAGES = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")
_IN_RESULTS = ("text", "tool_reference")


def _blocks(
    content: object, where: str, allowed: tuple[str, ...]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the blocks of a message's content with their kinds, after checking them."""
    if content is None:
        content = []
    if isinstance(content, str):
        yield "text", {"text": content}
        return
    if not isinstance(content, list):
        raise refused(f"{where} must be a string or a list of blocks.", param=where)
    for i, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in allowed:
            raise _unknown(str(kind), f"{where}.{i}")
        for name, fits in _FIELDS[kind].items():
            if not fits(block.get(name)):
                raise refused(
                    f"{where}.{i}: a block of type {kind} has no {name}, or an invalid one.",
                    param=f"{where}.{i}.{name}",
                )
        yield kind, block


def _unknown(kind: str, where: str) -> HTTPError:
    if kind in ("image", "document"):
        # Claude Code reads these words and this path, removes the block and continues.
        message = f"{where}.{kind}: Could not process {kind}."
        hint = "The models of this server read text only."
    else:
        message = f"{where} is of type {kind[:80]!r}, which is not supported."
        hint = "Leave it out."
    return refused(message, hint=hint, param=where, code="unsupported_content")
