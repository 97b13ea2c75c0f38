"""Another LLM of LlamaIndex as a fallback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from llama_index.core.base.llms.types import (
    ChatResponse,
    CompletionResponse,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.callbacks.token_counting import get_tokens_from_response
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.tools import BaseTool, ToolMetadata, ToolOutput

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.fallback import Call, provenance_of
from mlx_guarded_llm.fallback.checks import forces_call
from mlx_guarded_llm.fallback.deadline import awithin, within
from mlx_guarded_llm.fallback.external import ExternalAnswer, ExternalModel, instructed, is_object
from mlx_guarded_llm.results import InvalidToolCall, Result, ToolCall, Usage
from mlx_guarded_llm.tool_check import callable_tools

from .messages import from_openai, older_calls

ANSWER = "answer"  # the tool whose arguments are an answer held to a schema


class LlamaIndexCandidate(ExternalModel):
    """Lets an LLM of LlamaIndex answer in place of a local model.

    Of the call's options tools, schema and stop strings are translated. A schema becomes a
    tool that it must call where it can call tools, an instruction where it cannot; the
    answer is checked against it afterwards. How it samples stays as its owner set it up;
    `max_tokens`, `temperature` and `seed` of the call reach it where it has such a field
    and its owner left it open.

        from llama_index.core.llms import MockLLM
        from llama_index.llms.mlx_guarded import LlamaIndexCandidate

        LlamaIndexCandidate(MockLLM()).name     # "MockLLM"

    Args:
        llm: any; `MLXGuarded(fallbacks=[llm])` wraps it by itself.
    """

    def __init__(self, llm: LLM) -> None:
        try:
            name = llm.metadata.model_name
        except Exception:  # it does not know its model; when it is asked, it says so itself
            name = "unknown"
        super().__init__(llm.class_name() if name == "unknown" else name, llm)

    @property
    def llm(self) -> LLM:
        """The LLM that is asked."""
        found: LLM = self.model
        return found

    def generate(self, call: Call) -> Result:
        """Answer. Past `call.timeout` it is not waited for, but it cannot be stopped."""
        asked = self.understood(call)
        try:
            answer = self._answer(asked)
        except Exception as error:
            if not self.learns(asked, error):
                raise
            answer = self._answer(self.understood(call))
        return self.result(call, self._said(call, answer))

    async def agenerate(self, call: Call) -> Result:
        """Answer. Past `call.timeout` it is cancelled."""
        asked = self.understood(call)
        try:
            answer = await self._aanswer(asked)
        except Exception as error:
            if not self.learns(asked, error):
                raise
            answer = await self._aanswer(self.understood(call))
        return self.result(call, self._said(call, answer))

    # ---- asking ------------------------------------------------------------------

    def _answer(self, call: Call) -> Any:
        method, arguments = self._request(call)
        ask = getattr(self.set_up(call.options), method)
        return within(call.timeout, self.name, lambda: ask(**arguments))

    async def _aanswer(self, call: Call) -> Any:
        method, arguments = self._request(call)
        asked = getattr(self.set_up(call.options), f"a{method}")(**arguments)
        return await awithin(call.timeout, self.name, asked)

    def _request(self, call: Call) -> tuple[str, dict[str, Any]]:
        """The method to call and its arguments."""
        options = call.options
        self.refuse_what_it_cannot(options)
        if options.get("raw"):
            return "complete", {"prompt": call.prompt, "formatted": True}
        prompt: Any = call.prompt
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        tools, schema = _tools(options), options.get("schema")
        if tools and not self._calls_tools:
            raise self.unsupported("call tools")
        by_tool = self._answers_by_tool(options)
        if by_tool:
            tools = [_SchemaTool(ANSWER, options["schema"])]
        elif schema is not None:
            prompt = instructed(prompt, schema, beside_tools=bool(tools))
        messages = from_openai(prompt)
        if not tools:
            return "chat", {"messages": messages}
        return "chat_with_tools", {
            "tools": tools,
            "chat_history": messages,
            "tool_required": by_tool or forces_call(options),
            "allow_parallel_tool_calls": not by_tool and options.get("parallel_tool_calls", True),
        }

    @property
    def _calls_tools(self) -> bool:
        is_able: bool = self.llm.metadata.is_function_calling_model
        return is_able and isinstance(self.llm, FunctionCallingLLM)

    def _answers_by_tool(self, options: Mapping[str, Any]) -> bool:
        """An answer held to a schema is to come as the arguments of a tool."""
        if options.get("raw") or _tools(options):
            return False
        return self._calls_tools and is_object(options.get("schema"))

    # ---- the answer --------------------------------------------------------------

    def _said(self, call: Call, response: ChatResponse | CompletionResponse) -> ExternalAnswer:
        text, reasoning = _content(response)
        calls, unread = self._tool_calls(response)
        as_text = bool(calls) and self._answers_by_tool(call.options)
        if as_text:
            text, calls = json.dumps(calls[0].arguments, ensure_ascii=False), ()
        message = getattr(response, "message", None)
        return ExternalAnswer(
            text=text,
            reasoning=reasoning,
            tool_calls=calls,
            invalid_tool_calls=unread,
            sources=(
                response.raw,
                response.additional_kwargs,
                getattr(message, "additional_kwargs", None),
            ),
            as_text=as_text,
            usage=_usage(response),
            guard=provenance_of(response),
        )

    def _tool_calls(
        self, response: ChatResponse | CompletionResponse
    ) -> tuple[tuple[ToolCall, ...], tuple[InvalidToolCall, ...]]:
        """What it called, and what cannot be read as a call."""
        if isinstance(response, CompletionResponse) or not self._calls_tools:
            return (), ()
        read = [_read(*call) for call in self._called(response)]
        return (
            tuple(call for call in read if isinstance(call, ToolCall)),
            tuple(call for call in read if isinstance(call, InvalidToolCall)),
        )

    def _called(self, response: ChatResponse) -> list[tuple[str | None, str, Any]]:
        """Id, name and arguments of each call, as the provider gave them.

        An LLM's own reading comes last: some complete half a call, or leave out arguments
        that they cannot read.
        """
        blocks = [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
        if blocks:
            return [(b.tool_call_id, b.tool_name, b.tool_kwargs) for b in blocks]
        try:
            older = older_calls(response.message)
        except InvalidRequest:
            assert isinstance(self.llm, FunctionCallingLLM)
            found = self.llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
            return [(call.tool_id, call.tool_name, call.tool_kwargs) for call in found]
        return [(c.get("id"), c["function"]["name"], c["function"]["arguments"]) for c in older]


class _SchemaTool(BaseTool):
    """A tool that is only described: who asked for it calls it."""

    def __init__(self, name: str, parameters: Mapping[str, Any], description: str = "") -> None:
        self._metadata = _SchemaMetadata(
            description=description, name=name, fn_schema=_class_of(name, parameters)
        )
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


def _class_of(name: str, parameters: Mapping[str, Any]) -> type[BaseModel]:
    """A class that has this schema: some LLMs read no other."""

    def model_json_schema(cls: type[BaseModel], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return deepcopy(dict(parameters))

    return type(name, (BaseModel,), {"model_json_schema": classmethod(model_json_schema)})


def _tools(options: Mapping[str, Any]) -> list[_SchemaTool]:
    """The tools on offer. A named one stands alone."""
    functions = (
        tool["function"]
        for tool in callable_tools(options.get("tools"), options.get("tool_choice"))
    )
    return [
        _SchemaTool(f["name"], f.get("parameters") or _NOTHING, f.get("description") or "")
        for f in functions
    ]


_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


def _read(identity: str | None, name: str, arguments: Any) -> ToolCall | InvalidToolCall:
    value = arguments
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments or "{}")
        except ValueError as error:
            return InvalidToolCall(arguments, f"the arguments of {name!r} are no JSON ({error}).")
    if not isinstance(value, Mapping):
        return InvalidToolCall(str(arguments), f"the arguments of {name!r} are no JSON object.")
    return ToolCall(identity or "", name, dict(value))


def _content(response: ChatResponse | CompletionResponse) -> tuple[str, str]:
    """Text and thinking."""
    if isinstance(response, CompletionResponse):
        return response.text, ""
    blocks = response.message.blocks
    reasoning = "".join(b.content or "" for b in blocks if isinstance(b, ThinkingBlock))
    return response.message.content or "", reasoning


def _usage(response: ChatResponse | CompletionResponse) -> Usage | None:
    try:
        prompt, completion = get_tokens_from_response(response)
    except (TypeError, ValueError, AttributeError):  # `raw` may be anything
        return None
    return Usage(prompt or 0, completion or 0)
