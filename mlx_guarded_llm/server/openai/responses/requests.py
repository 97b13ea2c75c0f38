"""The request body of `/v1/responses`.

A parameter that would change the answer and is not supported is an error that names it. Agents send
some that they can do without; these are left out, and the response lists them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...bodies import Items
from ...errors import refused
from ..requests import Body
from .prompt import images_of

ENCRYPTED = "reasoning.encrypted_content"


class Format(BaseModel):
    """The format of an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Mapping[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None  # the schema always constrains the answer

    def schema_of(self) -> Mapping[str, Any] | None:
        """The schema of the answer; None for free text.

        Raises:
            HTTPError: the type is json_schema and there is no schema.
        """
        if self.type == "json_object":
            return {"type": "object"}
        if self.type == "json_schema" and self.schema_ is None:
            raise refused("text.format is json_schema without a schema.", param="text.format")
        return self.schema_


class TextConfig(BaseModel):
    """Options of the answer's text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Format | None = None
    verbosity: str | None = None


class Reasoning(BaseModel):
    """How much the model thinks, and how the thinking is sent. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: str | None = None
    generate_summary: str | None = None

    @property
    def summaries(self) -> bool:
        """Whether the thinking is sent as `summary`, the only form that many clients show."""
        return (self.summary or self.generate_summary or "none") != "none"


class ChosenTool(BaseModel):
    """A tool choice that names one function."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["function"]
    name: str


class AllowedTools(BaseModel):
    """A tool choice that allows some functions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Items[dict[str, Any]]


class ResponseRequest(Body):
    """The body of `/v1/responses`."""

    metadata: dict[str, str] | None = None  # sent back, and clients read nothing else
    model: str
    input: str | Items[dict[str, Any]] = Field(min_length=1)
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    tools: Items[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    # A request ends with its connection.
    background: Literal[False] | None = None
    # Most name outputs that do not exist here, or that are always sent; see `check`.
    include: Items[str] | None = None
    # Accepted, but a prompt that is too long is always an error.
    truncation: str | None = None
    # Bookkeeping, and options of tools that OpenAI's servers run.
    client_metadata: dict[str, Any] | None = None
    max_tool_calls: int | None = None
    prompt_cache_options: dict[str, Any] | None = None
    stream_options: dict[str, Any] | None = None

    @property
    def items(self) -> list[dict[str, Any]]:
        """The input as items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return self.input

    def functions(self) -> list[dict[str, Any]]:
        """The function tools, in the form of chat completions."""
        choice = self.tool_choice
        allowed = None
        if isinstance(choice, AllowedTools):
            allowed = {tool.get("name") for tool in choice.tools}
        return [
            {"type": "function", "function": {k: v for k, v in tool.items() if k in _FUNCTION}}
            for tool in self.tools or ()
            if tool.get("type") == "function" and (allowed is None or tool.get("name") in allowed)
        ]

    def choice(self) -> str | dict[str, Any] | None:
        """The tool choice, in the form of chat completions."""
        choice = self.tool_choice
        if isinstance(choice, ChosenTool):
            return {"type": "function", "function": {"name": choice.name}}
        return choice.mode if isinstance(choice, AllowedTools) else choice

    def schema_of(self) -> Mapping[str, Any] | None:
        """The schema of the answer; None for free text."""
        return self.text.format.schema_of() if self.text and self.text.format else None

    def left_out(self) -> Iterator[str]:
        """What the model is not given: other kinds of tools, tools' images, the verbosity."""
        for tool in self.tools or ():
            if tool.get("type") != "function":
                kind, name = str(tool.get("type")), tool.get("name")
                yield f"tools.{kind}.{name}" if name else f"tools.{kind}"
        for i, item in enumerate(self.items):
            for part in images_of(item.get("output")):
                yield f"input.{i}.output.{part}"
        if self.text is not None and self.text.verbosity is not None:
            yield "text.verbosity"

    def check(self) -> None:
        """Refuse what cannot be left out.

        Raises:
            HTTPError: the request asks for it.
        """
        if "message.output_text.logprobs" in (self.include or ()):
            raise refused(
                "log probabilities are not supported here.",
                hint="Use /v1/chat/completions.",
                param="include",
                code="unsupported_parameter",
            )
        try:
            json.dumps(self.model_dump(include=_SENT_BACK), allow_nan=False)
        except ValueError:  # 1e999 is JSON, but becomes what is none
            raise refused("a number is too large.", hint="1e308 is about the most.") from None


_SENT_BACK = {"tools", "tool_choice", "text", "temperature", "top_p"}
_FUNCTION = ("name", "description", "parameters", "strict")
