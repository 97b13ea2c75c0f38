"""The body of a response, and the events of a streamed one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sse_starlette import ServerSentEvent

from ....results import Chunk, FinishReason, InvalidToolCall, Provenance, Result, Usage
from ...blocks import Block, Blocks, Step, blocks_of, flagged
from ...calls import Question
from ...errors import HTTPError
from ...events import event
from .prompt import sealed
from .requests import ENCRYPTED, ResponseRequest

_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}
_CODES = {"context_length_exceeded": "context_length_exceeded"}


def fails_in_stream(error: HTTPError) -> bool:
    """Whether a stream reports this error as an event rather than as an HTTP status.

    Codex acts on these events: it compacts its conversation, waits, or stops. After the
    same error as a status it would only repeat the request, dozens of times.
    """
    return (
        error.code in _CODES
        or "retry-after" in error.headers
        or (error.status >= 500 and _in_vain(error))
    )


def _in_vain(error: HTTPError) -> bool:
    """Whether repeating the request cannot help."""
    return error.status < 500 or error.headers.get("x-should-retry") == "false"


class Answer:
    """One answer, in the shapes of the API.

    Args:
        body: the request.
        question: the request as it was put to the model.
        left_out: the parts of the request that the model was not given.
    """

    def __init__(self, body: ResponseRequest, question: Question, left_out: Sequence[str]) -> None:
        self._body = body
        self._question = question
        self._left_out = left_out
        self._created = time.time()
        self._number = 0
        self._blocks = Blocks()
        self._invalid: list[InvalidToolCall] = []
        self.output: list[dict[str, Any]] = []
        self.response: dict[str, Any] = {}  # when it has ended

    # ---- whole ----------------------------------------------------------------------

    def whole(self, result: Result) -> dict[str, Any]:
        """The body for a whole answer."""
        self.output = [self._item(block, over=True) for block in blocks_of(result)]
        self._invalid = list(result.invalid_tool_calls)
        return self._ended(result.finish_reason, result.usage, result.guard)

    # ---- as it grows ----------------------------------------------------------------

    def begin(self) -> Iterator[ServerSentEvent]:
        """The first events."""
        yield self._event("response.created", response=self._response("in_progress"))
        yield self.beat()

    def beat(self, words: str | None = None) -> ServerSentEvent:
        """An event that shows progress, with the reason for the wait as a comment.

        Codex gives up after some time without an event; comments do not count.
        """
        response = self._response("in_progress")
        return self._event("response.in_progress", comment=words, response=response)

    def add(self, chunk: Chunk) -> Iterator[ServerSentEvent]:
        """The events for a chunk."""
        self._invalid += chunk.invalid_tool_calls
        for step in self._blocks.add(chunk):
            yield from self._step(step)
        if chunk.finish_reason is not None:
            response = self._ended(chunk.finish_reason, chunk.usage, chunk.guard)
            yield self._event(f"response.{response['status']}", response=response)

    def fail(self, error: HTTPError) -> ServerSentEvent:
        """The last event of a stream that failed."""
        code = _CODES.get(error.code)
        message = str(error)
        wait = error.headers.get("retry-after")
        if code is None and wait is not None:
            code = "rate_limit_exceeded"
            message = f"{message} Please try again in {wait}s."  # Codex parses these words
        details = dict(error.details)
        guard = details.pop("guard", None)
        told = {
            # Codex does not repeat a request after "invalid_prompt"; `cause` has our own code.
            "code": code or ("invalid_prompt" if _in_vain(error) else "server_error"),
            "message": message,
            "cause": error.code,
            **details,
        }
        response = self._response("failed", error=told, **({"guard": guard} if guard else {}))
        return self._event("response.failed", response=response)

    def _step(self, step: Step) -> Iterator[ServerSentEvent]:
        block, item = step.block, self._item(step.block, over=step.what == "ends")
        place: dict[str, Any] = {"output_index": block.place, "item_id": item["id"]}
        if step.what == "begins":
            yield self._event("response.output_item.added", output_index=block.place, item=item)
            if block.kind != "call":
                part = self._part(block)
                yield self._event(f"response.{self._list(block)}_part.added", **place, **part)
        elif step.what == "grows":
            delta = {"delta": step.text, **self._where(block)}
            yield self._event(f"response.{self._kind(block)}.delta", **place, **delta)
        else:
            text = {"arguments" if block.kind == "call" else "text": block.text}
            if block.call is not None:
                text["name"] = block.call.name
            yield self._event(
                f"response.{self._kind(block)}.done", **place, **text, **self._where(block)
            )
            if block.kind != "call":
                part = self._part(block)
                yield self._event(f"response.{self._list(block)}_part.done", **place, **part)
            self.output.append(item)
            yield self._event("response.output_item.done", output_index=block.place, item=item)

    # ---- parts ----------------------------------------------------------------------

    @property
    def _summaries(self) -> bool:
        return self._body.reasoning is not None and self._body.reasoning.summaries

    def _kind(self, block: Block) -> str:
        if block.kind == "reasoning":
            return "reasoning_summary_text" if self._summaries else "reasoning_text"
        return "output_text" if block.kind == "text" else "function_call_arguments"

    def _list(self, block: Block) -> str:
        summary = block.kind == "reasoning" and self._summaries
        return "reasoning_summary" if summary else "content"

    def _where(self, block: Block) -> dict[str, Any]:
        """The index of the part within its item; each item has one part."""
        if block.kind == "call":
            return {}
        if self._list(block) == "reasoning_summary":
            return {"summary_index": 0}
        return {"content_index": 0, **({"logprobs": []} if block.kind == "text" else {})}

    def _part(self, block: Block) -> dict[str, Any]:
        where = {k: v for k, v in self._where(block).items() if k != "logprobs"}
        return {**where, "part": self._text(block)}

    def _text(self, block: Block) -> dict[str, Any]:
        if block.kind == "text":
            return {
                "type": "output_text",
                "text": block.text,
                "annotations": [],
                "logprobs": [],
            }
        kind = "summary_text" if self._summaries else "reasoning_text"
        return {"type": kind, "text": block.text}

    def _item(self, block: Block, *, over: bool) -> dict[str, Any]:
        name = self._question.request_id.partition("-")[2]
        item: dict[str, Any] = {
            "id": f"{_PREFIXES[block.kind]}_{name}{block.place}",
            "status": "in_progress" if not over else "incomplete" if block.cut else "completed",
        }
        if block.call is not None:
            call = {"call_id": block.call.id, "name": block.call.name, "arguments": block.text}
            return {**item, "type": "function_call", **call}
        parts = [self._text(block)] if over else []
        if block.kind == "text":
            return {**item, "type": "message", "role": "assistant", "content": parts}
        item |= {"type": "reasoning", "summary": [], "encrypted_content": None}
        item["summary" if self._summaries else "content"] = parts
        if over and ENCRYPTED in (self._body.include or ()):
            item["encrypted_content"] = sealed(block.text)
        return item

    # ---- the response itself --------------------------------------------------------

    def _ended(
        self, reason: FinishReason, usage: Usage | None, guard: Provenance | None
    ) -> dict[str, Any]:
        why = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(reason)
        response = self._response(
            "incomplete" if why else "completed",
            completed_at=time.time(),
            incomplete_details={"reason": why} if why else None,
            output=self.output,
            usage=_usage(usage or Usage(0, 0)),
            **flagged(self._invalid),
        )
        if guard is not None:
            response |= {"model": guard.served_model, "guard": guard.as_dict()}
        self.response = response
        return response

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        body = self._body
        text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
        return {
            "id": self._question.request_id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._question.model.name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {
                "effort": body.reasoning.effort if body.reasoning else None,
                "summary": body.reasoning.summary if body.reasoning else None,
            },
            "store": body.store is not False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}, **text},
            "tool_choice": _choice(body),
            "tools": [tool for tool in body.tools or () if tool.get("type") == "function"],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "left_out": list(self._left_out),
            **more,
        }

    def _event(self, kind: str, *, comment: str | None = None, **data: Any) -> ServerSentEvent:
        self._number += 1
        data = {"type": kind, "sequence_number": self._number - 1, **data}
        return event(data, kind, comment=comment)


def _choice(body: ResponseRequest) -> str | Mapping[str, Any]:
    choice = body.tool_choice or "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
