"""What the tests of the APIs ask, the answers of their models, and how they read a stream."""

from __future__ import annotations

import json
from typing import Any

import openai
from pydantic import BaseModel

from .conftest import Running

QUESTION = "What is the capital of France?"
ASK: Any = [{"role": "user", "content": QUESTION}]
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 9}
DIGITS: Any = {
    "type": "object",
    "properties": {"a": _NUMBER, "b": _NUMBER},
    "required": ["a", "b"],
    "additionalProperties": False,
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>'
THOUGHT = "<think>\nWell.\n</think>\n\nParis."


class Digit(BaseModel):
    """An answer of one field."""

    digit: int


def openai_client(running: Running, **options: Any) -> openai.OpenAI:
    given: dict[str, Any] = {"api_key": "none", "timeout": 60} | options
    return openai.OpenAI(base_url=f"{running.url}/v1", **given)


def named_events(running: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream as they are on the wire; the name of each is the type in it."""
    found = []
    with running.client.stream("POST", path, json={**body, "stream": True}) as reply:
        assert reply.status_code == 200, reply.read()
        name = ""
        for line in reply.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                found.append(json.loads(value))
                assert found[-1]["type"] == name
    return found
