"""ChatMLXGuarded."""

from __future__ import annotations

import copy
from functools import reduce
from typing import Any

from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, convert_to_messages

from langchain_mlx_guarded import ChatMLXGuarded
from mlx_guarded_llm import Provenance

from ._faces import SOON, Answer, Conversation, Face, read


class LangChain(Face):
    """LangChain's chat model."""

    library = "langchain"

    def make(self, backend: Any, model: str, **settings: Any) -> ChatMLXGuarded:
        return ChatMLXGuarded(model=model, backend=backend, **({"retry": SOON} | settings))

    def natives(self, conversation: Conversation) -> Any:
        if isinstance(conversation, str):
            return conversation
        return convert_to_messages(list(conversation))

    async def ask(self, llm: Any, conversation: Any, **options: Any) -> Answer:
        if "tools" in options:
            llm = llm.bind_tools(
                options.pop("tools"),
                tool_choice=options.pop("tool_choice", None),
                parallel_tool_calls=options.pop("parallel", None),
            )
        messages = self.natives(conversation)
        if self.way == "call":
            return _answer([llm.invoke(messages, **options)])
        if self.way == "acall":
            return _answer([await llm.ainvoke(messages, **options)])
        method = llm.stream if self.way == "stream" else llm.astream
        return _answer(await read(method(messages, **options)))

    async def open(self, llm: Any, conversation: Conversation) -> Any:
        method = llm.stream if self.way == "stream" else llm.astream
        return method(self.natives(conversation))

    async def make_object(self, llm: Any, cls: Any, text: str, **options: Any) -> Any:
        chain = llm.with_structured_output(cls, **options)
        if self.way == "call":
            return chain.invoke(text)
        if self.way == "acall":
            return await chain.ainvoke(text)
        method = chain.stream if self.way == "stream" else chain.astream
        return (await read(method(text)))[-1]

    async def ask_with_retry(self, llm: Any, text: str) -> Any:
        chain = llm.with_retry(
            retry_if_exception_type=lambda error: bool(getattr(error, "is_retryable", False)),
            stop_after_attempt=5,
            wait_exponential_jitter=False,
        )
        return await self.ask(chain, text)

    def external(self, text: str) -> FakeListChatModel:
        return FakeListChatModel(responses=[text] * 9)

    def inspect(self, llm: Any) -> None:
        assert llm._identifying_params["model_name"]
        assert llm._get_ls_params()["ls_model_name"]
        assert llm.profile is not None
        assert dumps(llm) and repr(llm) and llm.model_dump()
        assert llm._llm_type and llm.get_num_tokens("Hi") > 0
        llm.bind_tools([{"name": "f", "description": "f", "parameters": {"type": "object"}}])
        llm.with_structured_output({"title": "T", "type": "object", "properties": {}})
        llm.model_copy()
        copy.copy(llm)


def _answer(pieces: list[AIMessage]) -> Answer:
    whole: Any = reduce(lambda one, other: one + other, pieces)  # type: ignore[arg-type,return-value]
    metadata, usage = whole.response_metadata, whole.usage_metadata
    return Answer(
        text=str(whole.text),
        reasoning=whole.additional_kwargs.get("reasoning_content", ""),
        calls=tuple((call["name"], call["args"]) for call in whole.tool_calls),
        call_ids=tuple(call["id"] for call in whole.tool_calls),
        unread=len(whole.invalid_tool_calls),
        finish_reason=metadata["finish_reason"],
        usage=usage and (usage["input_tokens"], usage["output_tokens"]),
        model=metadata["model_name"],
        guard=Provenance.from_dict(metadata["guard"]),
        native=whole,
        whole=whole,
        pieces=tuple(str(piece.text) for piece in pieces),
        ends=tuple(
            i
            for i, p in enumerate(pieces)
            if p.usage_metadata or p.response_metadata.keys() & {"guard", "finish_reason"}
        ),
    )
