"""Asking again, with what was wrong with the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..results import Result

_LENGTH = 1000  # characters of a check's objection


def objection(error: Exception) -> str:
    """What a validation error says, in short; pydantic's tells places and reasons."""
    details = getattr(error, "errors", None)
    if not callable(details):
        return str(error)[:_LENGTH]
    said = [
        f"{'.'.join(map(str, one['loc']))}: {one['msg']}" if one["loc"] else str(one["msg"])
        for one in details()
    ]
    return "; ".join(said)[:_LENGTH]


def with_feedback(
    prompt: str | Sequence[Mapping[str, Any] | int], refused: Result, why: str
) -> list[Mapping[str, Any]]:
    """The conversation with the answer that was refused, and why.

    Args:
        prompt: as it was asked first; not token ids, which no conversation has.
        refused: the answer.
        why: what the check said.
    """
    asked: list[Any]
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if refused.tool_calls:
        return [*asked, _calls(refused), *_errors(refused, why)]
    wish = f"That answer was refused: {why}\nGive the whole answer again, without this fault."
    return [
        *asked,
        {"role": "assistant", "content": refused.text},
        {"role": "user", "content": wish},
    ]


def _calls(refused: Result) -> dict[str, Any]:
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(call.arguments, ensure_ascii=False),
            },
        }
        for call in refused.tool_calls
    ]
    return {"role": "assistant", "content": refused.text, "tool_calls": calls}


def _errors(refused: Result, why: str) -> list[dict[str, Any]]:
    text = f"Error: the call was refused: {why}"
    return [
        {"role": "tool", "tool_call_id": call.id, "content": text} for call in refused.tool_calls
    ]
