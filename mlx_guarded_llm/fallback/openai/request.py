"""From a call to the body of a request to `/v1/chat/completions`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...request import PromptRequest
from ..candidate import Call
from ..external import instructed, plain_name

# The options that OpenAI's API has too, most under the same name.
SETTINGS = (
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logprobs",
    "top_logprobs",
)
# Those that some of vLLM, llama.cpp, LM Studio and this library's server take beside them.
EXTRA_SETTINGS = ("top_k", "min_p", "repetition_penalty", "thinking_budget")
STOPS = 4  # OpenAI's API takes no more
_MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id")
_ROLES = {"developer": "system"}  # only OpenAI's own models know the former


def effort_of(options: Mapping[str, Any]) -> str | None:
    """How much is to be thought, in OpenAI's words; None leaves it to the model."""
    if options.get("thinking") is False:
        return "none"
    effort = (options.get("template_kwargs") or {}).get("reasoning_effort")
    return str(effort) if effort else None


def body_of(call: Call, settings: Mapping[str, Any], *, has_format: bool) -> dict[str, Any]:
    """The arguments of `chat.completions.create`, without the model.

    Args:
        call: what is asked.
        settings: fields of the request that say how to sample.
        has_format: the server takes `response_format`; otherwise the prompt asks for the form.

    Raises:
        InvalidRequest: the prompt or the tools are wrong, as they would be for a local model.
    """
    options = call.options
    prompting = {n: options[n] for n in ("tools", "tool_choice") if options.get(n) is not None}
    asked = PromptRequest(call.prompt, **prompting)
    messages = [_message(message) for message in asked.messages]
    tools = list(asked.offered_tools)
    body: dict[str, Any] = {
        **{name: value for name, value in settings.items() if name not in EXTRA_SETTINGS},
        "extra_body": {n: value for n, value in settings.items() if n in EXTRA_SETTINGS},
        "stream": True,
    }
    schema = options.get("schema")
    if tools:
        body["tools"] = tools
        if asked.tool_choice is not None:
            body["tool_choice"] = asked.tool_choice
        if options.get("parallel_tool_calls") is False:
            body["parallel_tool_calls"] = False
    if schema is not None:
        # Many servers refuse a form beside tools.
        if tools or not has_format or not isinstance(schema, Mapping):
            messages = instructed(messages, schema, beside_tools=bool(tools))
        else:
            name = plain_name(str(schema.get("title") or "answer"))
            form = {"name": name, "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
    return {**body, "messages": messages}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: message[name] for name in _MESSAGE if message.get(name) is not None}
    kept["role"] = _ROLES.get(message["role"], message["role"])
    if "tool_calls" in kept:
        kept["tool_calls"] = [_call(call) for call in kept["tool_calls"]]
        kept["content"] = kept.get("content") or None
    return kept


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {
        "id": call.get("id") or "call",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
