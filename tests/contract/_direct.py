"""GuardedLLM itself."""

from __future__ import annotations

import copy
from typing import Any

from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
)

from mlx_guarded_llm import Candidate, Chunk, GuardedLLM, Provenance, Result, Usage
from mlx_guarded_llm.fallback import Call

from ._faces import SOON, Answer, Conversation, Face, read


class Direct(Face):
    """GuardedLLM, whose messages are plain mappings."""

    library = "direct"

    def make(self, backend: Any, model: str, **settings: Any) -> GuardedLLM:
        return GuardedLLM(backend, model, **({"retry": SOON} | settings))

    def natives(self, conversation: Conversation) -> Any:
        return conversation if isinstance(conversation, str) else list(conversation)

    async def ask(self, llm: Any, conversation: Any, **options: Any) -> Answer:
        if "tools" in options:
            options["tool_choice"] = _choice(options.get("tool_choice"))
            options["parallel_tool_calls"] = options.pop("parallel", True)
        prompt = self.natives(conversation)
        if self.way == "call":
            return _answer([llm.generate(prompt, **options)])
        if self.way == "acall":
            return _answer([await llm.agenerate(prompt, **options)])
        method = llm.stream if self.way == "stream" else llm.astream
        return _answer(await read(method(prompt, **options)))

    async def open(self, llm: Any, conversation: Conversation) -> Any:
        method = llm.stream if self.way == "stream" else llm.astream
        return method(self.natives(conversation))

    async def make_object(self, llm: Any, cls: Any, text: str, **options: Any) -> Any:
        answer = await self.ask(llm, text, schema=cls.model_json_schema(), **options)
        return cls.model_validate_json(answer.text)

    async def ask_with_retry(self, llm: Any, text: str) -> Any:
        return await retrying(self, llm, text)

    def external(self, text: str) -> Candidate:
        return _Other(text)

    def inspect(self, llm: Any) -> None:
        assert llm.model
        repr(llm)
        copy.copy(llm)


async def retrying(face: Face, llm: Any, text: str) -> Answer:
    """What users of tenacity write, who ask the error whether to try again."""

    def may_pass(error: BaseException) -> bool:
        return bool(getattr(error, "retryable", False))

    policy: dict[str, Any] = {
        "retry": retry_if_exception(may_pass),
        "stop": stop_after_attempt(5),
        "reraise": True,
    }
    answer: Answer = await AsyncRetrying(**policy)(face.ask, llm, text)
    return answer


class _Other(Candidate):
    name = "other"

    def __init__(self, text: str) -> None:
        self._text = text

    def generate(self, call: Call) -> Result:
        return Result(
            text=self._text,
            reasoning="",
            tool_calls=(),
            invalid_tool_calls=(),
            logprobs=(),
            finish_reason="stop",
            usage=Usage(1, 1),
            guard=Provenance(
                request_id=call.request_id, requested_model="other", served_model="other"
            ),
        )


def _choice(choice: Any) -> Any:
    if choice in (None, "auto", "required", "none"):
        return choice
    return {"type": "function", "function": {"name": choice}}


def _answer(pieces: list[Result | Chunk]) -> Answer:
    last = pieces[-1]
    assert last.guard and last.usage and last.finish_reason
    calls = [call for piece in pieces for call in piece.tool_calls]
    text = "".join(piece.text for piece in pieces)
    native: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        native["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in calls
        ]
    return Answer(
        text=text,
        reasoning="".join(piece.reasoning for piece in pieces),
        calls=tuple((call.name, dict(call.arguments)) for call in calls),
        call_ids=tuple(call.id for call in calls),
        unread=sum(len(piece.invalid_tool_calls) for piece in pieces),
        finish_reason=last.finish_reason,
        usage=(last.usage.prompt_tokens, last.usage.completion_tokens),
        model=last.guard.served_model,
        guard=last.guard,
        native=native,
        whole=last,
        pieces=tuple(piece.text for piece in pieces),
        ends=tuple(
            i for i, p in enumerate(pieces) if p.guard or p.usage or p.finish_reason is not None
        ),
    )
