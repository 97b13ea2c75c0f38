"""Models of other packages, whose answers are shaped as those packages shape them.

The metadata are those of langchain-openai, -anthropic, -google-genai, -ollama, -aws, -cohere,
-mistralai, -groq, -huggingface and -deepseek; the raw answers those of the llama-index-llms
of the same providers.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.mock import MockFunctionCallingLLM


@dataclass(frozen=True, kw_only=True)
class Says:
    """What a model of somebody else's answers.

    Attributes:
        calls: name and arguments of each call; arguments may be text, as OpenAI sends them.
        metadata: LangChain's `response_metadata`.
        raw: LlamaIndex's `raw`.
        blocks: content blocks instead of a text, in LangChain.
    """

    text: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    raw: Any = None
    blocks: tuple[Any, ...] = ()


class Chat(BaseChatModel):
    """A chat model of LangChain. It keeps what it was asked."""

    says: Any
    asked: list[Any]

    @property
    def _llm_type(self) -> str:
        return "external"

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Any:
        return self.bind(tools=tools, **kwargs)  # as Ollama's, which knows no choice

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any) -> Any:
        self.asked.append({"messages": messages, "stop": stop, **kw})
        calls = [
            {"name": name, "args": args, "id": f"c{i}"}
            for i, (name, args) in enumerate(self.says.calls)
            if not isinstance(args, str)
        ]
        unread = [
            {"name": name, "args": args, "id": "c", "error": None, "type": "invalid_tool_call"}
            for name, args in self.says.calls
            if isinstance(args, str)
        ]
        message = AIMessage(
            list(self.says.blocks) or self.says.text,
            tool_calls=calls,
            invalid_tool_calls=unread,
            response_metadata=self.says.metadata,
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


class SetChat(Chat):
    """It has settings, which its owner left open."""

    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any) -> Any:
        own = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        return super()._generate(messages, stop, run_manager, **own, **kw)


class Llm(MockFunctionCallingLLM):
    """An LLM of LlamaIndex. It keeps what it was asked."""

    says: Any
    asked: list[Any]

    def _prepare_chat_with_tools(self, tools: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.asked.append({"tools": [tool.metadata.to_openai_tool() for tool in tools]})
        return {"messages": kwargs["chat_history"]}

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        self.asked.append({"messages": list(messages), **self._own()})
        blocks: list[Any] = [TextBlock(text=self.says.text)] if self.says.text else []
        blocks += [
            ToolCallBlock(tool_call_id=f"c{i}", tool_name=name, tool_kwargs=args)
            for i, (name, args) in enumerate(self.says.calls)
        ]
        return ChatResponse(message=ChatMessage(role="assistant", blocks=blocks), raw=self.says.raw)

    def _own(self) -> dict[str, Any]:
        return {}

    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self.chat(messages, **kwargs)


class SetLlm(Llm):
    """It has settings, which its owner left open."""

    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None

    def _own(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}


def external(library: str, says: Says, *, settings: bool = False, **own: Any) -> Any:
    """A model of a framework that says this."""
    kinds: dict[str, tuple[type[Any], type[Any]]] = {
        "langchain": (Chat, SetChat),
        "llama_index": (Llm, SetLlm),
    }
    return kinds[library][settings or bool(own)](says=says, asked=[], **own)


class FinishReason(enum.Enum):
    """As google-genai has it."""

    STOP = "STOP"
    MAX_TOKENS = "MAX_TOKENS"
    SAFETY = "SAFETY"
    MALFORMED_FUNCTION_CALL = "MALFORMED_FUNCTION_CALL"


def _openai(reason: str, **message: Any) -> Any:
    """An object of OpenAI's client."""
    choice = SimpleNamespace(finish_reason=reason, message=SimpleNamespace(**message))
    return SimpleNamespace(choices=[choice])


def _response(status: str, reason: str | None = None) -> dict[str, Any]:
    details = None if reason is None else {"reason": reason}
    return {"object": "response", "status": status, "incomplete_details": details}


def _same(said: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    return said, said


# Outcome and provider: LangChain's metadata and LlamaIndex's raw answer.
DIALECTS: list[tuple[str, str, dict[str, Any], Any]] = [
    (outcome, provider, *shapes)
    for outcome, providers in {
        "": {
            "openai": ({"finish_reason": "stop"}, _openai("stop", refusal=None)),
            "responses": _same(_response("completed")),
            "anthropic": _same({"stop_reason": "end_turn", "stop_sequence": None}),
            "anthropic-stop": _same({"stop_reason": "stop_sequence", "stop_sequence": "END"}),
            "gemini": ({"finish_reason": "STOP"}, {"finish_reason": FinishReason.STOP}),
            "gemini-numbers": _same({"finish_reason": 1}),
            "gemini-merged": _same({"finish_reason": "STOPSTOP"}),
            "ollama": _same({"done": True, "done_reason": "stop"}),
            "cohere": ({"finish_reason": "COMPLETE"}, SimpleNamespace(finish_reason="COMPLETE")),
            "bedrock": _same({"stopReason": "end_turn"}),
            "titan": _same({"completionReason": "FINISH"}),
            "tgi": _same({"finish_reason": "eos_token"}),
            "vllm": _same({"choices": [{"finish_reason": "stop", "stop_reason": "\nObs"}]}),
            "with a search": _same(
                {**_response("completed"), "output": [{"type": "web_search", "status": "failed"}]}
            ),
            "silent": _same({}),
        },
        "length": {
            "openai": ({"finish_reason": "length"}, _openai("length")),
            "responses": _same(_response("incomplete", "max_output_tokens")),
            "anthropic": _same({"stop_reason": "max_tokens"}),
            "anthropic-window": _same({"stop_reason": "model_context_window_exceeded"}),
            "gemini": ({"finish_reason": "MAX_TOKENS"}, {"finish_reason": FinishReason.MAX_TOKENS}),
            "gemini-name": _same({"finish_reason": "FinishReason.MAX_TOKENS"}),
            "gemini-numbers": _same({"candidates": [{"finish_reason": 2}]}),
            "ollama": _same({"done": True, "done_reason": "length"}),
            "cohere": _same({"finish_reason": "MAX_TOKENS"}),
            "bedrock": _same({"stopReason": "max_tokens"}),
            "titan": _same({"results": [{"completionReason": "LENGTH"}]}),
            "mistral": _same({"finish_reason": "model_length"}),
            "llama.cpp": _same({"stop_type": "limit"}),
            "ai21": _same({"completions": [{"finishReason": {"reason": "length"}}]}),
        },
        "filtered": {
            "openai": ({"finish_reason": "content_filter"}, _openai("content_filter")),
            "openai-refusal": (
                {"finish_reason": "stop", "refusal": "I cannot."},
                _openai("stop", refusal="I cannot."),
            ),
            "responses": _same(_response("incomplete", "content_filter")),
            "responses-refusal": _same(
                {
                    **_response("completed"),
                    "output": [{"content": [{"type": "refusal", "refusal": "I cannot."}]}],
                }
            ),
            "anthropic": _same({"stop_reason": "refusal"}),
            "gemini": ({"finish_reason": "SAFETY"}, {"finish_reason": FinishReason.SAFETY}),
            "gemini-more": _same({"finish_reason": "PROHIBITED_CONTENT"}),
            "gemini-spii": _same({"finish_reason": "SPII"}),
            "gemini-recitation": _same({"finish_reason": "RECITATION"}),
            "gemini-prompt": _same({"prompt_feedback": {"block_reason": "SAFETY"}}),
            "bedrock": _same({"stopReason": "guardrail_intervened"}),
            "bedrock-content": _same({"stopReason": "content_filtered"}),
            "titan": _same({"completionReason": "CONTENT_FILTERED"}),
            "cohere": _same({"finish_reason": "ERROR_TOXIC"}),
        },
        "unfinished": {
            "responses": _same({**_response("failed"), "error": {"code": "server_error"}}),
            "responses-running": _same(_response("in_progress")),
            "responses-cut": _same(_response("incomplete")),
            "anthropic": _same({"stop_reason": "pause_turn"}),
            "gemini": (
                {"finish_reason": "MALFORMED_FUNCTION_CALL"},
                {"finish_reason": FinishReason.MALFORMED_FUNCTION_CALL},
            ),
            "gemini-other": _same({"finish_reason": "OTHER"}),
            "gemini-new": _same({"finish_reason": "UNKNOWN_99"}),
            "ollama": _same({"done": True, "done_reason": "load"}),
            "ollama-broken": _same({"done": False}),
            "cohere": _same({"finish_reason": "ERROR"}),
            "mistral": _same({"finish_reason": "error"}),
            "deepseek": _same({"finish_reason": "insufficient_system_resource"}),
            "openai-lost-call": _same({"finish_reason": "tool_calls"}),
            "sglang": _same({"finish_reason": "abort"}),
            "nobody's": _same({"finish_reason": "because"}),
        },
    }.items()
    for provider, shapes in providers.items()
]
