"""What the engine needs of a batch, however it decodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from ...params import SamplingParams
from .constraint import Constraint

# While others wait for their next token, a prefill chunk is a full one divided by this: their
# answers are held up for less time, and the prompt takes only a little longer.
BESIDE = 4

# Of a kept KV cache: "system" for what many conversations begin with, "user" for what the next
# turn of a conversation does, "assistant" for the rest.
Kind = Literal["assistant", "user", "system"]


@dataclass(eq=False)
class TokenSequence:
    """A request as a batch sees it.

    Attributes:
        prompt: token ids.
        boundaries: positions in the prompt at which its cache is worth keeping, with the kind.
        max_tokens: the most tokens to generate.
        emitted: how many tokens at the end of the prompt belong to the answer.
        constraint: the grammar of the answer, at its beginning.
        cached: prompt tokens found in the prefix cache; set when it is inserted.
        drafted: tokens of the answer that were drafted so far.
        accepted: how many of these the model chose itself.
        share: takes the tokens chosen here and returns those that count, where several ranks
            compute the model; None where nobody else does.
    """

    request_id: str
    prompt: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    boundaries: Mapping[int, Kind] = field(default_factory=dict)
    emitted: int = 0
    constraint: Constraint | None = None
    cached: int = 0
    drafted: int = 0
    accepted: int = 0
    share: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Prefilled:
    """`done` of the prompt's `total` tokens are in the KV cache."""

    request_id: str
    done: int
    total: int


class Token(NamedTuple):
    """One token of an answer.

    It is a tuple because the MLX thread makes one for each token.

    Attributes:
        top: the most likely alternatives as (id, log probability), best first.
        finish_reason: "stop" on an end token, "length" on the last allowed one.
    """

    request_id: str
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    finish_reason: str | None


Update = Prefilled | Token


class Decoder(Protocol):
    """Several requests of one model that are decoded together. Used by one thread only."""

    def __len__(self) -> int:
        """How many requests are in it."""

    @property
    def begins(self) -> bool:
        """A prompt has been computed, but the first token of its answer has not come out."""

    def insert(self, sequence: TokenSequence) -> int:
        """Add a request. Returns how many of its prompt tokens are in the prefix cache."""

    def remove(self, request_id: str) -> None:
        """Remove a request, finished or not. Unknown ids are ignored."""

    def step(self, *, beside: bool = False) -> list[Update]:
        """Advance. After an exception the decoder must be discarded.

        Args:
            beside: other models have requests too, which wait for this step to end.
        """
