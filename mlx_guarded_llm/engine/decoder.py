"""What the engine asks of a batch, whichever way it decodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ..params import SamplingParams
from .constraint import Constraint


@dataclass(eq=False)
class Job:
    """A request as a batch sees it.

    Attributes:
        prompt: token ids.
        boundaries: where in the prompt its cache is worth keeping, and as what kind
            ("system" or "user", see `PrefixCache.insert`).
        max_tokens: tokens to generate at most.
        emitted: tokens of the answer that are part of the prompt already.
        constraint: holds the answer to a grammar; it has seen none of the tokens yet.
        cached: prompt tokens that came from the prefix cache; set on insertion.
    """

    request_id: str
    prompt: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    boundaries: Mapping[int, str] = field(default_factory=dict)
    emitted: int = 0
    constraint: Constraint | None = None
    cached: int = 0


@dataclass(frozen=True)
class Prefilled:
    """So many of the prompt's tokens are in the KV cache."""

    request_id: str
    done: int
    total: int


class Token(NamedTuple):
    """One token of an answer.

    A tuple and no dataclass: one is made per token on the MLX thread.

    Attributes:
        top: the likeliest alternatives as (id, log probability), best first.
        finish_reason: "stop" on an end token, "length" on the last allowed one.
    """

    request_id: str
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    finish_reason: str | None


Update = Prefilled | Token


class Decoder(Protocol):
    """Several requests of one model, decoded together. Used by one thread only."""

    def __len__(self) -> int:
        """Requests in it."""

    @property
    def begins(self) -> bool:
        """A prompt is computed, and the first token of its answer is not out yet."""

    def insert(self, job: Job) -> int:
        """Let a request join. Returns its prompt tokens found in the prefix cache."""

    def remove(self, request_id: str) -> None:
        """Let a request leave, finished or not. Unknown ones are ignored."""

    def step(self, *, beside: bool = False) -> list[Update]:
        """Advance. After an exception the decoder must be thrown away.

        Args:
            beside: requests of other models wait for their turn meanwhile.
        """
