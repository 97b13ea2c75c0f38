"""From the events of a stream to the chunks of an answer."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...engine.output.stops import StopFinder
from ...errors import RequestCancelled, ServerUnavailable
from ...params import NEUTRAL
from ...results import (
    Chunk,
    Embeddings,
    InvalidToolCall,
    Provenance,
    Result,
    TokenLogprob,
    ToolCall,
    Usage,
)
from ..candidate import Call, as_chunk
from ..checks import SEVERITY
from ..external import ExternalAnswer
from ..reading import member, members

UNKNOWN_TOKEN = -1  # OpenAI's API gives the text of a token, and no id
_FENCES = ("`", "~")
_LONGEST = 200  # characters of what a server says of itself


@dataclass
class _Written:
    """A tool call whose pieces are still coming."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    def read(self) -> ToolCall | InvalidToolCall:
        try:
            arguments = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError) as error:
            return InvalidToolCall(self._text, f"its arguments are not JSON ({error}).")
        if not isinstance(arguments, dict) or not self.name:
            return InvalidToolCall(self._text, "it has no name, or its arguments are no object.")
        return ToolCall(self.id or f"call-{uuid.uuid4().hex[:16]}", self.name, arguments)

    @property
    def _text(self) -> str:
        return json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)


@dataclass
class Answer:
    """One answer as it comes.

    Args:
        call: what is asked.
        who: the server and its model, for errors.
        name: of the candidate.
        finished: makes a `Result` of what was said, as `ExternalModel.result` does.

    Attributes:
        sampling: the settings that were sent.
        text: all of it so far.
        over: nothing after this belongs to it: a stop string has come.
    """

    call: Call
    who: str
    name: str
    finished: Callable[[Call, ExternalAnswer], Result]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    over: bool = False
    _reasoning: str = ""
    _refusal: str = ""
    _safe: int = 0  # characters of the text that are before any stop string
    _passed: int = 0  # of these, those that were passed on
    _reason: Any = None
    _stop_string: str = ""
    _usage: Usage | None = None
    _fingerprint: str = ""
    _began: float = field(default_factory=time.monotonic)
    _first: float = 0.0  # when the first piece came
    _last: float = 0.0
    _theirs: Mapping[str, Any] = field(default_factory=dict)  # a guarded server's provenance
    _calls: list[_Written] = field(default_factory=list)
    _growing: dict[int, _Written] = field(default_factory=dict)  # the last of each index

    def __post_init__(self) -> None:
        stop = self.call.options.get("stop") or ()
        self._stops = StopFinder((stop,) if isinstance(stop, str) else tuple(stop))

    def add(self, event: Any) -> Chunk | None:
        """What an event brings that can be passed on."""
        choices = members(event, "choices")
        usage = member(event, "usage")
        if not choices and usage is None and member(event, "id") is None:
            raise self.broken("an event of its answer is none of a chat completion")
        if usage is not None:
            self._usage = _usage(usage)
        self._fingerprint = _text(member(event, "system_fingerprint")) or self._fingerprint
        theirs = member(event, "guard")
        self._theirs = theirs if isinstance(theirs, Mapping) else self._theirs
        choice = next((one for one in choices if member(one, "index") in (0, None)), None)
        return None if choice is None else self._add(choice)

    def end(self) -> Chunk:
        """The last chunk.

        Raises:
            ServerUnavailable: the answer has no end.
        """
        if not self._reason and not self.over:
            raise self.broken("its answer ended without a finish reason")
        calls = [call.read() for call in self._calls]
        said = ExternalAnswer(
            text=self.text,
            reasoning=self._reasoning,
            tool_calls=tuple(call for call in calls if isinstance(call, ToolCall)),
            invalid_tool_calls=tuple(call for call in calls if isinstance(call, InvalidToolCall)),
            sources=(
                {"finish_reason": "stop" if self.over else self._reason, "refusal": self._refusal},
            ),
            usage=self._usage,
        )
        result = self.finished(self.call, said)
        return replace(
            as_chunk(result),
            text=result.text[self._passed :],
            reasoning="",
            stop_string=self._stop_string,
            guard=self._guard(),
        )

    def cancelled(self) -> Chunk | RequestCancelled:
        """The end of an answer that somebody stopped."""
        if not (self.text or self._reasoning):
            return RequestCancelled(f"request {self.call.request_id} was cancelled.")
        usage = self._usage or Usage(0, 0)
        return Chunk(finish_reason="cancelled", usage=usage, guard=self._guard())

    def broken(self, why: str) -> ServerUnavailable:
        """The error for an answer that cannot be read to its end."""
        had = f" {len(self.text):,} characters of it had come." if self.text else ""
        return ServerUnavailable(f"{self.who}: {why}.{had}", text=self.text)

    def _add(self, choice: Any) -> Chunk | None:
        delta = member(choice, "delta")
        reasoning = _text(member(delta, "reasoning_content") or member(delta, "reasoning"))
        self._reasoning += reasoning
        self._refusal += _text(member(delta, "refusal"))
        for place, piece in enumerate(members(delta, "tool_calls")):
            index = member(piece, "index")
            self._add_call(index if isinstance(index, int) else place, piece)
        self._reason = member(choice, "finish_reason") or self._reason
        text = self._add_text(_text(member(delta, "content")))
        stopped_by = member(choice, "stop_reason")  # vLLM's
        if self._stops.found or isinstance(stopped_by, str):
            self._stop_string = self._stops.found or _text(stopped_by)
        logprobs = _logprobs(member(choice, "logprobs"))
        if text or reasoning or self._calls:
            self._last = time.monotonic()
            self._first = self._first or self._last
        if not (text or reasoning or logprobs):
            return None
        return Chunk(text=text, reasoning=reasoning, logprobs=logprobs)

    def _add_text(self, text: str) -> str:
        """The part of the text so far that can be passed on now."""
        self.text += text
        self._safe += len(self._stops.add(text))
        self.over = bool(self._stops.found)
        if self._may_be_fenced():
            return ""
        fresh, self._passed = self.text[self._passed : self._safe], self._safe
        return fresh

    def _may_be_fenced(self) -> bool:
        """Whether it is to be JSON and may stand in a Markdown fence, which is taken off."""
        if self._passed or self.call.options.get("schema") is None:
            return False
        begun = self.text.lstrip()
        return not begun or begun.startswith(_FENCES)

    def _add_call(self, place: int, piece: Any) -> None:
        """Add a piece to its call. Some servers give all calls one index, and others none."""
        function, id_ = member(piece, "function"), _text(member(piece, "id"))
        call = self._growing.get(place)
        if call is None or (id_ and call.id and id_ != call.id):
            call = self._growing[place] = _Written()
            self._calls.append(call)
        call.id = id_ or call.id
        call.name += _text(member(function, "name"))
        call.arguments += _text(member(function, "arguments"))

    def _guard(self) -> Provenance:
        """A server that is guarded itself says whether its own answer is the one asked for."""
        theirs, now = self._theirs, time.monotonic()
        first, last = self._first or now, self._last or now
        fallback = theirs.get("fallback") is True
        served = f"{self.name}/{_text(theirs.get('served_model'))[:_LONGEST]}"
        seed = self.sampling.get("seed")
        return Provenance(
            request_id=self.call.request_id,
            requested_model=self.name,
            served_model=served if fallback else self.name,
            fingerprint=self._fingerprint[:_LONGEST],
            seed=seed if isinstance(seed, int) else None,
            sampling={n: value for n, value in self.sampling.items() if n in NEUTRAL},
            fallback=fallback,
            degraded=tuple(r for r in members(theirs, "degraded") if r in SEVERITY),
            prefill=first - self._began,
            decode=last - first,
        )


def embeddings(answer: Any, count: int, name: str, request_id: str, who: str) -> Embeddings:
    """The vectors of an answer of `/v1/embeddings`, each made as long as 1.

    Raises:
        ServerUnavailable: they are not one for each of `count` texts, or not of one size.
    """
    import numpy as np

    found = sorted(members(answer, "data"), key=lambda one: _count(member(one, "index")))
    rows = [members(one, "embedding") for one in found]
    sizes = {len(row) for row in rows}
    numbers = all(isinstance(number, (int, float)) for row in rows for number in row)
    if len(rows) != count or len(sizes) != 1 or 0 in sizes or not numbers:
        raise ServerUnavailable(f"{who} made no vector for each of {count} texts.")
    vectors = np.asarray(rows, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    guard = Provenance(request_id=request_id, requested_model=name, served_model=name)
    return Embeddings(
        vectors=(vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32),
        usage=_usage(member(answer, "usage")),
        guard=guard,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) and not isinstance(value, bool) else 0


def _usage(usage: Any) -> Usage:
    prompt = member(usage, "prompt_tokens_details")
    said = member(usage, "completion_tokens_details")
    accepted = _count(member(said, "accepted_prediction_tokens"))
    return Usage(
        prompt_tokens=_count(member(usage, "prompt_tokens")),
        completion_tokens=_count(member(usage, "completion_tokens")),
        cached_tokens=_count(member(prompt, "cached_tokens")),
        reasoning_tokens=_count(member(said, "reasoning_tokens")),
        drafted_tokens=accepted + _count(member(said, "rejected_prediction_tokens")),
        accepted_tokens=accepted,
    )


def _logprobs(logprobs: Any) -> tuple[TokenLogprob, ...]:
    found = []
    for token in members(logprobs, "content"):
        top = [(UNKNOWN_TOKEN, *_likely(one)) for one in members(token, "top_logprobs")]
        found.append(TokenLogprob(UNKNOWN_TOKEN, *_likely(token), top=tuple(top)))
    return tuple(found)


def _likely(token: Any) -> tuple[str, float]:
    logprob = member(token, "logprob")
    number = isinstance(logprob, (int, float))
    return _text(member(token, "token")), float(logprob) if number else math.nan
