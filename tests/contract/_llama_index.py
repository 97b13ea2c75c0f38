"""MLXGuarded."""

from __future__ import annotations

import copy
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ThinkingBlock
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.mlx_guarded import MLXGuarded

from mlx_guarded_llm import Provenance

from ._direct import retrying
from ._faces import SOON, Answer, Conversation, Face, read


class LlamaIndex(Face):
    """LlamaIndex's LLM."""

    library = "llama_index"

    def make(self, backend: Any, model: str, **settings: Any) -> MLXGuarded:
        return MLXGuarded(model=model, backend=backend, **({"retry": SOON} | settings))

    def natives(self, conversation: Conversation) -> Any:
        if isinstance(conversation, str):
            return [ChatMessage(role="user", content=conversation)]
        return [m if isinstance(m, ChatMessage) else _message(m) for m in conversation]

    async def ask(self, llm: Any, conversation: Any, **options: Any) -> Answer:
        messages = self.natives(conversation)
        name = {"call": "", "stream": "stream_", "acall": "a", "astream": "astream_"}[self.way]
        if "tools" in options:
            name += "chat_with_tools"
            options["allow_parallel_tool_calls"] = options.pop("parallel", True)
            answer = getattr(llm, name)(chat_history=messages, **options)
        else:
            answer = getattr(llm, f"{name}chat")(messages, **options)
        if self.way.startswith("a"):
            answer = await answer
        return _answer(await read(answer) if self.streams else [answer])

    async def open(self, llm: Any, conversation: Conversation) -> Any:
        messages = self.natives(conversation)
        if self.way == "stream":
            return llm.stream_chat(messages)
        return await llm.astream_chat(messages)

    async def make_object(self, llm: Any, cls: Any, text: str, **options: Any) -> Any:
        prompt = PromptTemplate("{text}")
        arguments: dict[str, Any] = {"llm_kwargs": options, "text": text}
        if self.way == "call":
            return llm.structured_predict(cls, prompt, **arguments)
        if self.way == "acall":
            return await llm.astructured_predict(cls, prompt, **arguments)
        if self.way == "stream":
            return list(llm.stream_structured_predict(cls, prompt, **arguments))[-1]
        stream = await llm.astream_structured_predict(cls, prompt, **arguments)
        return (await read(stream))[-1]

    async def ask_with_retry(self, llm: Any, text: str) -> Any:
        return await retrying(self, llm, text)  # LlamaIndex's own adapters use tenacity

    def external(self, text: str) -> Any:
        return _Other(text=text)

    def inspect(self, llm: Any) -> None:
        assert llm.metadata.context_window and llm.metadata.model_name
        assert llm.to_dict() and llm.to_json() and repr(llm) and llm.model_dump()
        assert llm.class_name() and type(llm).model_json_schema(mode="serialization")
        llm.model_copy()
        copy.deepcopy(llm)


class _Other(CustomLLM):
    """An LLM of somebody else's."""

    text: str

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="other")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self.text)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        yield CompletionResponse(text=self.text, delta=self.text)


def _message(message: Any) -> ChatMessage:
    extra = {key: message[key] for key in ("tool_call_id", "tool_calls", "name") if key in message}
    return ChatMessage(role=message["role"], content=message["content"], additional_kwargs=extra)


def _answer(pieces: list[Any]) -> Answer:
    last = pieces[-1]
    message, raw = last.message, last.raw
    usage = raw["usage"]
    found = MLXGuarded(model="unused").get_tool_calls_from_response(
        last, error_on_no_tool_call=False
    )
    thoughts = (b.content or "" for b in message.blocks if isinstance(b, ThinkingBlock))
    return Answer(
        text=message.content or "",
        reasoning="".join(thoughts),
        calls=tuple((call.tool_name, call.tool_kwargs) for call in found),
        call_ids=tuple(call.tool_id for call in found),
        unread=len(raw.get("invalid_tool_calls", ())),
        finish_reason=raw["finish_reason"],
        usage=usage and (usage["prompt_tokens"], usage["completion_tokens"]),
        model=raw["model"],
        guard=Provenance.from_dict(raw["guard"]),
        native=message,
        whole=last,
        # A stream's responses hold all so far, and what is new in `delta`.
        pieces=tuple(
            piece.message.content if piece.delta is None else piece.delta for piece in pieces
        ),
        ends=tuple(i for i, piece in enumerate(pieces) if piece.raw is not None),
    )
