"""What comes back from a generation: chunks, a result, and where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# "content_filter" and "other" are those of other libraries' models: a filter or the model
# itself refused, or it ended for a reason that is none of these.
FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "content_filter", "other"]
AttemptOutcome = Literal["ok", "degraded", "error"]

_SCALARS = frozenset({type(None), bool, int, float, str})


@dataclass(frozen=True)
class Usage:
    """Token counts of one request.

    All are 0 when nobody knows them: not every model of another library tells.

    Attributes:
        prompt_tokens: tokens of the prompt after templating.
        completion_tokens: tokens generated, thinking and the final stop token included.
        cached_tokens: prompt tokens whose KV cache was found and not computed again.
        reasoning_tokens: of the completion tokens, those of the thinking, with the markers that
            begin and end it. A token that has the end of the thinking and the beginning of the
            answer counts as thinking, and so does a call in the thinking that was not made,
            with the token that shows it. 0 for an answer that was cancelled while its engine
            was dead.
        drafted_tokens: tokens that the model's draft proposed to the engine that ended the answer.
        accepted_tokens: of these, the ones that the model chose as well.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Those of the prompt and of the answer together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def known(self) -> bool:
        """Somebody counted: no answer is made of no tokens at all."""
        return self.total_tokens > 0


@dataclass(frozen=True)
class ToolCall:
    """A function call the model asked for.

    Attributes:
        id: unique within the process; a tool's answer refers to it.
        name: the function.
        arguments: its arguments by name.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class InvalidToolCall:
    """What the model meant as a tool call and is none.

    It breaks the rules of the model's format, calls a function that was not offered, has
    arguments that do not fit the function's schema, or was cut off.

    Attributes:
        text: what stands between the markers, as the model wrote it.
        error: why it is no call.
    """

    text: str
    error: str


@dataclass(frozen=True)
class TokenLogprob:
    """Log probability (natural logarithm) of one generated token.

    Attributes:
        token: its id.
        text: the token as the vocabulary spells it.
        logprob: its log probability.
        top: the likeliest alternatives as (id, text, logprob), best first.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at an answer.

    Attributes:
        model: who was asked.
        outcome: how it went.
        reasons: why its answer is degraded.
        error: kind and text of the error.
        seconds: from its start to its end, queueing and loading included.
        tokens: generated.
        request_id: names it in `backend.explain()`.
        changed: options that differ from what the caller asked for.
    """

    model: str
    outcome: AttemptOutcome
    reasons: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0
    tokens: int = 0
    request_id: str = ""
    changed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where an answer came from and what it waited for. Times are seconds.

    Attributes:
        request_id: names the request in `backend.explain()` and the record.
        requested_model: the name the caller used, with all load options in one bracket.
        served_model: the name of the model that answered; "" when none did.
        fingerprint: identifies the weights that answered.
        revision: commit of the repository they came from, if they came from one.
        seed: the sampling seed; the same request with it gives the same tokens.
        sampling: the temperature, top_p, top_k, min_p and repetition_penalty that were
            used: the caller's, else the model's own. Empty where they are not known.
        fallback: another model answered than the one that was asked for.
        degraded: why the answer is not a full one; empty when it is. "empty",
            "thinking" (cut off inside it), "length", "loop", "schema", "tool_call"
            (one that cannot be read or was not offered, or none where one had to be),
            "filtered" (by a provider or its model), "unfinished" (for a reason of a
            provider's own), "refused" (by the caller's check), "cancelled".
        capped: a `max_tokens` of the caller's own cut the answer off. It is what was asked
            for, and so not degraded; its finish reason is "length".
        attempts: every try of `GuardedLLM`, in order, the one that answered included.
        resumed: the answer went on in a new engine after a crash, or at another replica.
        replica: which replica of a cluster answered, the last if it went on at another; "" where
            there are none.
        queued: waiting for a place, deferral and loading included.
        deferred: of that, waiting for other generations before its model could load.
        loading: of that, while its model loaded.
        prefill: from its start until its first token.
        decode: from its first token until its last.
        paused: of prefill and decode, standing still while another model loaded.
        recovering: of prefill and decode, from the death of an engine until it went on.
    """

    request_id: str
    requested_model: str
    served_model: str
    fingerprint: str = ""
    revision: str = ""
    seed: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    fallback: bool = False
    degraded: tuple[str, ...] = ()
    capped: bool = False
    attempts: tuple[Attempt, ...] = ()
    resumed: bool = False
    replica: str = ""
    queued: float = 0.0
    deferred: float = 0.0
    loading: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    paused: float = 0.0
    recovering: float = 0.0

    @property
    def decoding(self) -> float:
        """Seconds of `decode` without those it stood still: what a speed is to be of."""
        return max(0.0, self.decode - self.paused - self.recovering)

    @property
    def as_asked(self) -> bool:
        """It is a full answer of the model that was asked for."""
        return not (self.fallback or self.degraded)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values, for framework metadata."""
        values: dict[str, Any] = _json(asdict(self))
        return values

    def _repr_html_(self) -> str:
        from .display.answers import provenance_html

        return provenance_html(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """What `as_dict` made; keys of another version are ignored."""
        known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
        known["degraded"] = tuple(known.get("degraded", ()))
        known["attempts"] = tuple(
            Attempt(**{**attempt, "reasons": tuple(attempt.get("reasons", ()))})
            for attempt in known.get("attempts", ())
        )
        return cls(**known)


def _json(value: Any) -> Any:
    """A value with lists in place of its tuples."""
    if isinstance(value, Mapping):
        return {k: v if type(v) in _SCALARS else _json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [v if type(v) in _SCALARS else _json(v) for v in value]
    return value


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of a streamed answer. The last one carries usage and guard.

    Attributes:
        text: new answer text; whole characters only. What is left of one is dropped where
            the answer was cut off, and U+FFFD where the model ended there.
        reasoning: new thinking text.
        tool_calls: calls completed in this piece.
        invalid_tool_calls: what was meant as a call and is none.
        logprobs: of the tokens behind this piece, when asked for.
        tokens: ids of the tokens since the piece before; the last piece has the stop token as
            well. Empty if nobody knows them.
        finish_reason: on the last chunk, why it ended.
        stop_string: on the last chunk, which of the caller's ended it, or "".
        usage: on the last chunk.
        guard: on the last chunk.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stop_string: str = ""
    usage: Usage | None = None
    guard: Provenance | None = None

    def with_guard(self, guard: Provenance) -> Chunk:
        """The same chunk with its provenance."""
        return replace(self, guard=guard)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A whole answer: the chunks of a stream put together."""

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason = "stop"
    stop_string: str = ""
    usage: Usage = Usage(0, 0)
    guard: Provenance

    def _repr_html_(self) -> str:
        from .display.answers import result_html

        return result_html(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """Vectors of texts, in the order of the texts.

    Attributes:
        vectors: float32 of shape (texts, size), each of length 1.
        usage: `prompt_tokens` counts the tokens of all texts.
        guard: where they came from; `prefill` is how long they took.
    """

    vectors: npt.NDArray[np.float32]
    usage: Usage
    guard: Provenance


@dataclass
class Collector:
    """Puts the chunks of one stream together into a `Result`."""

    chunks: list[Chunk] = field(default_factory=list)

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk of the stream."""
        self.chunks.append(chunk)

    def result(self) -> Result:
        """The whole answer; call it after the last chunk."""
        last = self.chunks[-1]
        assert last.finish_reason and last.usage and last.guard, "the last chunk is missing"
        return Result(
            text="".join(self._all("text")),
            reasoning="".join(self._all("reasoning")),
            tool_calls=tuple(chain.from_iterable(self._all("tool_calls"))),
            invalid_tool_calls=tuple(chain.from_iterable(self._all("invalid_tool_calls"))),
            logprobs=tuple(chain.from_iterable(self._all("logprobs"))),
            finish_reason=last.finish_reason,
            stop_string=last.stop_string,
            usage=last.usage,
            guard=last.guard,
        )

    def _all(self, name: str) -> Iterator[Any]:
        return map(attrgetter(name), self.chunks)
