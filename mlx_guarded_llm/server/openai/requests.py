"""Request bodies of OpenAI's API.

A parameter that would change the answer and is not supported is an error that names it.
Parameters for a client's bookkeeping are accepted and have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..bodies import Items
from ..errors import refused

_SEEDS = 2**64
_MOST_DIGITS = 20  # of the id of a token


class Body(BaseModel):
    """A body; unknown fields are an error."""

    model_config = ConfigDict(extra="forbid", strict=False, frozen=True)

    # Bookkeeping without an effect on the answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = False
    include_obfuscation: bool = False  # accepted; nothing is padded


class Generating(Body):
    """What chat completions and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | Items[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    # Not in OpenAI's API, but in those of other local servers.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def sampling(self) -> dict[str, Any]:
        """The options for `GuardedLLM`; None means not given."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "stop": [self.stop] if isinstance(self.stop, str) else self.stop,
            "max_tokens": self.max_tokens,
            "logit_bias": _bias(self.logit_bias),
        }

    def seeds(self) -> list[int | None]:
        """A seed for each choice; with one seed all choices would be the same."""
        count = self.n or 1
        if self.seed is None:
            return [None] * count
        return [(self.seed + place) % _SEEDS for place in range(count)]

    @property
    def wants_usage(self) -> bool:
        """The stream is to end with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check_stream_options(self) -> None:
        """Refuse stream options of a request that is not streamed.

        Raises:
            HTTPError: they are given without `stream`.
        """
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options is given without stream.", param="stream_options")


class FunctionName(BaseModel):
    """The name of a function."""

    name: str


class NamedFunction(BaseModel):
    """A tool choice that names one function."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["function"]
    function: FunctionName


class JSONSchema(BaseModel):
    """A schema with its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    description: str | None = None
    schema_: Mapping[str, Any] = Field(alias="schema")
    strict: bool | None = None  # the schema always constrains the answer


class ResponseFormat(BaseModel):
    """The format of an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None

    def schema_of(self) -> Mapping[str, Any] | None:
        """The schema of the answer; None for free text.

        Raises:
            HTTPError: the type is json_schema and there is no schema.
        """
        if self.type == "json_object":
            return {"type": "object"}
        if self.type == "text":
            return None
        if self.json_schema is None:
            raise refused(
                "response_format is json_schema without a schema.",
                param="response_format.json_schema",
            )
        return self.json_schema.schema_


class ChatRequest(Generating):
    """The body of `/v1/chat/completions`."""

    messages: Items[dict[str, Any]] = Field(min_length=1)
    tools: Items[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    modalities: Items[Literal["text"]] | None = None
    store: Literal[False] | None = None
    # Not in OpenAI's API: tokens of thinking at most; variables of the model's chat template, and
    # those two of them that other servers take by themselves. Open WebUI sends both when its user
    # clicks "Continue".
    thinking_budget: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    def options(self) -> dict[str, Any]:
        """The options for `GuardedLLM`; None means not given."""
        choice = self.tool_choice
        limit = self.max_completion_tokens
        return {
            **self.sampling(),
            "max_tokens": self.max_tokens if limit is None else limit,
            "tools": self.tools or None,
            "tool_choice": choice.model_dump() if isinstance(choice, NamedFunction) else choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "schema": self.response_format and self.response_format.schema_of(),
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "thinking_budget": self.thinking_budget,
            "template_kwargs": self.chat_template_kwargs,
            "continue_final_message": self.continue_final_message,
        }

    def check_beginning(self) -> None:
        """Refuse what contradicts itself about how the answer begins.

        Raises:
            HTTPError: an answer is to begin and not to begin.
        """
        if self.add_generation_prompt is None:
            return
        if self.add_generation_prompt == bool(self.continue_final_message):
            raise refused(
                f"add_generation_prompt is {self.add_generation_prompt} and "
                f"continue_final_message is {bool(self.continue_final_message)}.",
                hint="An answer either begins or continues the last message. Leave out "
                "add_generation_prompt.",
                param="add_generation_prompt",
            )


class CompletionRequest(Generating):
    """The body of `/v1/completions`."""

    prompt: str | Items[str] | Items[int] | Items[Items[int]]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0)
    best_of: int | None = None
    suffix: str | None = None


class EmbeddingsRequest(Body):
    """The body of `/v1/embeddings`."""

    model: str
    input: str | Items[str] | Items[int] | Items[Items[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


def _bias(bias: Mapping[str, float] | None) -> dict[int, float] | None:
    for token in bias or ():
        if not token.removeprefix("-").isdecimal() or len(token) > _MOST_DIGITS:
            raise refused(
                f"logit_bias has the key {token[:80]!r}; keys are ids of tokens.",
                param="logit_bias",
            )
    return None if bias is None else {int(token): value for token, value in bias.items()}
