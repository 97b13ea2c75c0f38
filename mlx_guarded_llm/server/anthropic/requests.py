"""Request bodies of Anthropic's API.

A parameter that would change the answer and is not supported is an error that names it.
Parameters for a client's bookkeeping are accepted and have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..bodies import Items
from ..errors import refused
from .prompt import referenced_tools


class Taken(BaseModel):
    """A part of a body; unknown fields are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Loose(BaseModel):
    """A part of a body; unknown fields are ignored, because they do not change the answer."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Tool(Loose):
    """A tool that the client runs."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: Mapping[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None

    def as_function(self) -> dict[str, Any]:
        """The tool in OpenAI's form.

        Raises:
            HTTPError: the tool is run, or its schema defined, by Anthropic's servers.
        """
        if self.type not in (None, "custom"):
            raise refused(
                f"tools of type {self.type[:80]!r} are not supported.",
                hint="Only tools with an input_schema are.",
                param="tools",
                code="unsupported_parameter",
            )
        if self.input_schema is None:
            raise refused(f"the tool {self.name[:80]!r} has no input_schema.", param="tools")
        function: dict[str, Any] = {"name": self.name, "parameters": self.input_schema}
        if self.description is not None:
            function["description"] = self.description
        if self.strict is not None:
            function["strict"] = self.strict
        return {"type": "function", "function": function}


class ToolChoice(Taken):
    """Whether tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    def as_choice(self) -> str | dict[str, Any]:
        """The choice in OpenAI's form."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return {"auto": "auto", "any": "required", "none": "none"}[self.type]


class Thinking(Loose):
    """Whether the model thinks, and how many tokens at most."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(None, ge=0)

    def as_switch(self) -> bool | None:
        """The value of the option `thinking`; "adaptive" leaves the choice to the model."""
        return {"enabled": True, "disabled": False}.get(self.type)


class OutputFormat(Taken):
    """The schema of an answer."""

    type: Literal["json_schema"]
    schema_: Mapping[str, Any] = Field(alias="schema")


class OutputConfig(Taken):
    """Options of the answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountRequest(Taken):
    """The body of `/v1/messages/count_tokens`: everything that shapes the prompt."""

    model: str
    messages: Items[dict[str, Any]] = Field(min_length=1)
    system: str | Items[dict[str, Any]] | None = None
    tools: Items[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # its place before output_config existed
    # Bookkeeping, and options that save time or money on Anthropic's servers.
    cache_control: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    diagnostics: dict[str, Any] | None = None
    inference_geo: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    speed: str | None = None

    @property
    def schema_of(self) -> Mapping[str, Any] | None:
        """The schema of the answer; None for free text."""
        form = (self.output_config and self.output_config.format) or self.output_format
        return form.schema_ if form else None

    @property
    def effort(self) -> str | None:
        """How much the model should think."""
        return self.output_config.effort if self.output_config else None

    def functions(self) -> list[dict[str, Any]]:
        """The tools that the model is shown, in OpenAI's form.

        A deferred tool is shown once the client's tool search has found it.
        """
        found = referenced_tools(self.messages)
        return [
            tool.as_function()
            for tool in self.tools or ()
            if not tool.defer_loading or tool.name in found
        ]


class MessageRequest(CountRequest):
    """The body of `/v1/messages`."""

    max_tokens: int
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: Items[str] | None = None

    def sampling(self) -> dict[str, Any]:
        """The options for `GuardedLLM`; None means not given."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": self.stop_sequences,
            "schema": self.schema_of,
            "thinking_budget": self.thinking.budget_tokens if self.thinking else None,
        }
