"""Translate the items of a conversation into the messages that a backend takes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ...errors import HTTPError, refused

_INSTRUCTING = ("system", "developer")
_MARK = "mlx-guarded:"  # starts the encrypted_content that this server made


def as_messages(
    instructions: str | None, items: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a conversation as messages.

    The instructions, and all system and developer messages before the user's first, become one
    system message. The thinking and the tool calls of an answer become fields of its message.

    Raises:
        HTTPError: a part of it is invalid, or cannot be shown to a model.
    """
    conversation = _Conversation(instructions)
    for i, item in enumerate(items):
        conversation.add(item, f"input.{i}")
    return conversation.messages


def sealed(thinking: str) -> str:
    """Thinking as `encrypted_content`, the only form that some clients send back."""
    return _MARK + base64.b64encode(thinking.encode()).decode()


class _Conversation:
    def __init__(self, instructions: str | None) -> None:
        self.messages: list[dict[str, Any]] = []
        self._thinking = ""  # of the assistant message that follows
        if instructions:
            self._instruct(instructions)

    def add(self, item: Mapping[str, Any], where: str) -> None:
        """Add an item."""
        kind = item.get("type", "message")
        take = _KINDS.get(kind) if isinstance(kind, str) else None
        if take is None:
            raise refused(
                f"{where} is of type {str(kind)[:80]!r}, which is not supported.",
                hint="Leave it out.",
                param=where,
                code="unsupported_content",
            )
        take(self, item, where)

    def message(self, item: Mapping[str, Any], where: str) -> None:
        role = item.get("role")
        text = _text(item.get("content"), f"{where}.content")
        if role in _INSTRUCTING:
            self._instruct(text)
        elif role == "assistant":
            self.messages.append({"role": "assistant", "content": text})
            self._take_thinking()
        elif role == "user":
            self.messages.append({"role": "user", "content": text})
            self._thinking = ""
        else:
            raise refused(
                f"{where} has the role {str(role)[:80]!r}; it must be user, assistant, system "
                "or developer.",
                param=f"{where}.role",
            )

    def reasoning(self, item: Mapping[str, Any], where: str) -> None:
        parts = item.get("content") or item.get("summary")
        text = _text(parts, where) if parts else _opened(item.get("encrypted_content"))
        self._thinking += text

    def call(self, item: Mapping[str, Any], where: str) -> None:
        self._call(item, where, item.get("arguments") or "{}")

    def custom_call(self, item: Mapping[str, Any], where: str) -> None:
        """A call of a custom tool, which another server must have offered."""
        self._call(item, where, {"input": item.get("input") or ""})

    def output(self, item: Mapping[str, Any], where: str) -> None:
        content = _text(_in_words(item.get("output")), f"{where}.output")
        name = _string(item, "call_id", where)
        self.messages.append({"role": "tool", "tool_call_id": name, "content": content})

    def _call(self, item: Mapping[str, Any], where: str, arguments: Any) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": ""})
        self._take_thinking()
        function = {"name": _string(item, "name", where), "arguments": arguments}
        call = {"id": _string(item, "call_id", where), "type": "function", "function": function}
        self.messages[-1].setdefault("tool_calls", []).append(call)

    def _take_thinking(self) -> None:
        if self._thinking:
            last = self.messages[-1]
            last["reasoning_content"] = last.get("reasoning_content", "") + self._thinking
        self._thinking = ""

    def _instruct(self, text: str) -> None:
        if len(self.messages) == 1 and self.messages[0]["role"] == "system":
            texts = (self.messages[0]["content"], text)
            self.messages[0]["content"] = "\n\n".join(part for part in texts if part)
        else:
            self.messages.append({"role": "system", "content": text})


_KINDS: Mapping[str, Callable[[_Conversation, Mapping[str, Any], str], None]] = {
    "message": _Conversation.message,
    "reasoning": _Conversation.reasoning,
    "function_call": _Conversation.call,
    "function_call_output": _Conversation.output,
    "custom_tool_call": _Conversation.custom_call,
    "custom_tool_call_output": _Conversation.output,
}

_UNSEEN = {"type": "input_text", "text": "[an image, which this model cannot see]"}
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refused(f"{where} must be a string or a list of parts.", param=where)
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if kind else None
        if kind not in (*_TEXTS, "refusal"):
            raise _unknown(str(kind), f"{where}.{i}")
        if not isinstance(text, str):
            raise refused(f"{where}.{i} has no text.", param=f"{where}.{i}")
        texts.append(text)
    return "\n\n".join(texts)


def images_of(output: object) -> Iterator[int]:
    """The indices of the images in a tool's output."""
    for i, part in enumerate(output if isinstance(output, list) else ()):
        if isinstance(part, dict) and part.get("type") == "input_image":
            yield i


def _in_words(output: object) -> object:
    """A tool's output with a text in place of each image.

    An agent sends the image again with every later turn, so refusing it would end the
    conversation.
    """
    images = set(images_of(output))
    if not images:
        return output
    assert isinstance(output, list)
    return [_UNSEEN if i in images else part for i, part in enumerate(output)]


def _unknown(kind: str, where: str) -> HTTPError:
    blind = kind in ("input_image", "input_file", "input_audio")
    return refused(
        f"{where} is of type {kind[:80]!r}, which is not supported.",
        hint="The models of this server read text only." if blind else "Leave it out.",
        param=where,
        code="unsupported_content",
    )


def _string(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise refused(f"{where} has no {name}.", param=f"{where}.{name}")
    return value


def _opened(kept: object) -> str:
    """The thinking in an `encrypted_content`; empty if another server made it."""
    if not isinstance(kept, str) or not kept.startswith(_MARK):
        return ""
    try:
        return base64.b64decode(kept.removeprefix(_MARK), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
