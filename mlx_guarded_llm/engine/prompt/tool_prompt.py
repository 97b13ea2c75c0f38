"""Tools, calls and results as text, for a model whose template does not know them.

The format is Hermes', which many models have read; see `tool_format.OURS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .tool_format import OURS

Messages = list[dict[str, Any]]

_INSTRUCTIONS = """\
# Tools

You may call functions to help with the user's request. Each line between the tags is one
function as JSON:
<tools>
{tools}
</tools>

To call a function, write a JSON object with its name and its arguments between these tags:
{start}
{{"name": "<name of the function>", "arguments": {{"<argument>": <value>}}}}
{end}
What it returns comes back between <tool_response> and </tool_response>."""


def describe(tools: Sequence[Mapping[str, Any]]) -> str:
    """The text that tells the model which tools it may call."""
    lines = (json.dumps(tool, ensure_ascii=False) for tool in tools)
    return _INSTRUCTIONS.format(tools="\n".join(lines), start=OURS.start, end=OURS.end)


def has_calls(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the conversation contains calls or results of tools."""
    return any("tool_calls" in message or message["role"] == "tool" for message in messages)


def as_text(messages: Messages) -> Messages:
    """The same messages, with calls and results as text.

    Results become messages of the user; those of one turn become one message.
    """
    out: Messages = []
    after_result = False
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if after_result:
                out[-1]["content"] += f"\n{text}"
            else:
                out.append({"role": "user", "content": text})
        else:
            out.append(_with_calls(message))
        after_result = message["role"] == "tool"
    return out


def words_apart(messages: Messages) -> Messages:
    """The same messages; text that comes with a call becomes a message of its own before it."""
    out: Messages = []
    for message in messages:
        if message.get("tool_calls") and message["content"]:
            out.append({"role": message["role"], "content": message["content"]})
            out.append({**message, "content": ""})
        else:
            out.append(message)
    return out


def with_instructions(messages: Messages, text: str) -> Messages:
    """The messages with a text at the end of the system message, which is added if missing."""
    first = messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    both = "\n\n".join(part for part in (first["content"], text) if part)
    return [{**first, "content": both}, *messages[1:]]


def _with_calls(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return dict(message)
    parts = [message["content"]] if message["content"] else []
    for call in message["tool_calls"]:
        function = call["function"]
        body = {"name": function["name"], "arguments": function["arguments"]}
        parts.append(f"{OURS.start}\n{json.dumps(body, ensure_ascii=False)}\n{OURS.end}")
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join(parts)}
