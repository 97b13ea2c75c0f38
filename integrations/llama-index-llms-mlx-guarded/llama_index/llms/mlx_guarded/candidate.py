"""Another LLM of LlamaIndex as a fallback."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)
from llama_index.core.callbacks.token_counting import get_tokens_from_response
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.tools import BaseTool, ToolMetadata, ToolOutput

from mlx_guarded_llm.errors import ModelUnsupported
from mlx_guarded_llm.guarded import Call, Candidate
from mlx_guarded_llm.guarded.deadline import awithin, within
from mlx_guarded_llm.results import FinishReason, Provenance, Result, ToolCall, Usage

from .errors import NoToolCall
from .messages import from_openai

ANSWER = "answer"  # the tool whose arguments are an answer held to a schema
_INSTRUCTION = "Answer with JSON that matches this JSON Schema, and with nothing else:\n"
_CUT_OFF = ("length", "max_tokens")


class LlamaIndexCandidate(Candidate):
    """Lets an LLM of LlamaIndex answer in place of a local model.

    It is asked with its own settings: of the call's options only tools, schema and stop
    strings are translated. A schema becomes a tool that it must call where it can call
    tools, an instruction where it cannot; the answer is checked against it afterwards.

        from llama_index.core.llms import MockLLM
        from llama_index.llms.mlx_guarded import LlamaIndexCandidate

        LlamaIndexCandidate(MockLLM()).name     # "MockLLM"

    Args:
        llm: any; `MLXGuarded(fallbacks=[llm])` wraps it by itself.
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        name = llm.metadata.model_name
        self.name = llm.class_name() if name == "unknown" else name

    def generate(self, call: Call) -> Result:
        """Answer. Past `call.timeout` it is not waited for, but it cannot be stopped."""
        method, arguments = self._request(call)
        ask = getattr(self.llm, method)
        return self._result(call, within(call.timeout, self.name, lambda: ask(**arguments)))

    async def agenerate(self, call: Call) -> Result:
        """Answer. Past `call.timeout` it is cancelled."""
        method, arguments = self._request(call)
        asked = getattr(self.llm, f"a{method}")(**arguments)
        return self._result(call, await awithin(call.timeout, self.name, asked))

    # ---- asking ------------------------------------------------------------------

    def _request(self, call: Call) -> tuple[str, dict[str, Any]]:
        """The method to call and its arguments."""
        options = call.options
        if held := next((n for n in ("regex", "grammar") if options.get(n) is not None), None):
            raise self._cannot(f"hold its answer to a {held}")
        if options.get("raw"):
            return "complete", {"prompt": call.prompt, "formatted": True}
        prompt = call.prompt
        plain = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = from_openai(plain)
        tools, required = _offered(options)
        if tools:
            if not self._calls_tools:
                raise self._cannot("call tools")
            parallel = options.get("parallel_tool_calls", True)
            return _with_tools(messages, tools, required=required, parallel=parallel)
        schema = options.get("schema")
        if schema is None:
            return "chat", {"messages": messages}
        if self._answers_by_tool(options):
            return _with_tools(messages, [_SchemaTool(ANSWER, schema)], required=True)
        return "chat", {"messages": _instructed(messages, schema)}

    @property
    def _calls_tools(self) -> bool:
        is_able: bool = self.llm.metadata.is_function_calling_model
        return is_able and isinstance(self.llm, FunctionCallingLLM)

    def _answers_by_tool(self, options: Mapping[str, Any]) -> bool:
        """An answer held to a schema is to come as the arguments of a tool."""
        schema = options.get("schema")
        if schema is None or options.get("raw") or _offered(options)[0]:
            return False
        return self._calls_tools and schema.get("type") == "object"

    def _cannot(self, what: str) -> ModelUnsupported:
        return ModelUnsupported(f"{self.name} ({type(self.llm).__name__}) cannot {what}.")

    # ---- the answer --------------------------------------------------------------

    def _result(self, call: Call, response: ChatResponse | CompletionResponse) -> Result:
        text, reasoning = _content(response)
        calls = self._tool_calls(response)
        if _offered(call.options)[1] and not calls:
            raise NoToolCall(f"{self.name} made no tool call, although it had to.")
        if calls and self._answers_by_tool(call.options):
            text, calls = json.dumps(calls[0].arguments, ensure_ascii=False), ()
        reason = _finish_reason(response.raw)
        return Result(
            text=_stopped(text, call.options.get("stop") or ()),
            reasoning=reasoning,
            tool_calls=calls,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            usage=_usage(response),
            guard=self._guard(call, response.raw),
        )

    def _tool_calls(self, response: ChatResponse | CompletionResponse) -> tuple[ToolCall, ...]:
        if isinstance(response, CompletionResponse) or not self._calls_tools:
            return ()
        assert isinstance(self.llm, FunctionCallingLLM)
        found = self.llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        return tuple(ToolCall(call.tool_id, call.tool_name, call.tool_kwargs) for call in found)

    def _guard(self, call: Call, raw: object) -> Provenance:
        if isinstance(raw, Mapping) and isinstance(raw.get("guard"), Mapping):
            return replace(Provenance.from_dict(raw["guard"]), request_id=call.request_id)
        return Provenance(
            request_id=call.request_id, requested_model=self.name, served_model=self.name
        )


class _SchemaTool(BaseTool):
    """A tool that is only described: who asked for it calls it."""

    def __init__(self, name: str, parameters: Mapping[str, Any], description: str = "") -> None:
        self._metadata = _SchemaMetadata(description=description, name=name)
        self._metadata.parameters = dict(parameters)

    @property
    def metadata(self) -> ToolMetadata:
        return self._metadata

    def __call__(self, input: Any) -> ToolOutput:
        raise NotImplementedError


class _SchemaMetadata(ToolMetadata):
    parameters: dict[str, Any]

    def get_parameters_dict(self) -> dict[str, Any]:
        return self.parameters


def _offered(options: Mapping[str, Any]) -> tuple[list[_SchemaTool], bool]:
    """The tools on offer, and whether one must be called. A named one stands alone."""
    choice = options.get("tool_choice")
    if choice == "none":
        return [], False
    name = choice["function"]["name"] if isinstance(choice, Mapping) else None
    functions = [tool["function"] for tool in options.get("tools") or ()]
    tools = [
        _SchemaTool(f["name"], f.get("parameters") or _NOTHING, f.get("description") or "")
        for f in functions
        if name in (None, f["name"])
    ]
    return tools, choice == "required" or name is not None


_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


def _with_tools(
    messages: list[ChatMessage],
    tools: Sequence[_SchemaTool],
    *,
    required: bool,
    parallel: bool = False,
) -> tuple[str, dict[str, Any]]:
    return "chat_with_tools", {
        "tools": tools,
        "chat_history": messages,
        "tool_required": required,
        "allow_parallel_tool_calls": parallel,
    }


def _instructed(messages: list[ChatMessage], schema: Mapping[str, Any]) -> list[ChatMessage]:
    """The messages and the wish for JSON, without two of the user's in a row."""
    wish = TextBlock(text=_INSTRUCTION + json.dumps(schema, ensure_ascii=False))
    *before, last = messages
    if last.role != MessageRole.USER:
        return [*messages, ChatMessage(role=MessageRole.USER, blocks=[wish])]
    return [*before, ChatMessage(role=last.role, blocks=[*last.blocks, wish])]


def _content(response: ChatResponse | CompletionResponse) -> tuple[str, str]:
    """Text and thinking."""
    if isinstance(response, CompletionResponse):
        return response.text, ""
    blocks = response.message.blocks
    reasoning = "".join(b.content or "" for b in blocks if isinstance(b, ThinkingBlock))
    return response.message.content or "", reasoning


def _stopped(text: str, stop: str | Sequence[str]) -> str:
    for end in (stop,) if isinstance(stop, str) else stop:
        text = text.partition(end)[0]
    return text


def _finish_reason(raw: Any) -> FinishReason:
    """Whether the answer was cut off, in the words of OpenAI, Anthropic, Gemini or Ollama."""
    plain = raw.model_dump() if hasattr(raw, "model_dump") else raw
    if not isinstance(plain, Mapping):
        return "stop"
    names = ("finish_reason", "stop_reason", "done_reason")
    places = [plain, *(plain.get("choices") or ())]
    reasons = [place.get(name) for place in places if isinstance(place, Mapping) for name in names]
    return "length" if any(str(reason).lower() in _CUT_OFF for reason in reasons) else "stop"


def _usage(response: ChatResponse | CompletionResponse) -> Usage:
    try:
        prompt, completion = get_tokens_from_response(response)
    except (TypeError, ValueError, AttributeError):  # `raw` may be anything
        prompt, completion = 0, 0
    return Usage(prompt or 0, completion or 0)
