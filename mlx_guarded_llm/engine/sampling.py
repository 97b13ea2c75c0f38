"""Choosing tokens: one call for the whole batch, each row by its own parameters.

`BatchGenerator` samples a batch of mixed parameters row by row. Here the parameters
are arrays, and randomness is counter-based: the number that picks token *i* comes from
(seed, i) alone. So a request gets the same tokens alone, beside others, and when it is
started again at token *i*.

The filters are those of `mlx_lm.sample_utils`, on the model's own distribution, with
temperature after them. Nothing here raises: parameters are checked before they come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.sample_utils import LogitsProcessor, make_logits_processors

from ..params import SamplingParams
from .constraint import Constraint, next_tokens
from .decoder import Job

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(eq=False)
class Row:
    """The sampling state of one request in a batch.

    Attributes:
        params: what its caller asked for.
        seed: resolved, never None.
        index: tokens sampled so far; a resumed request starts above 0.
        constraint: holds the answer to a grammar.
    """

    params: SamplingParams
    seed: int
    index: int = 0
    constraint: Constraint | None = None

    @classmethod
    def of(cls, job: Job) -> Row:
        """The state of a request that is about to begin, or to go on."""
        if job.constraint is not None and job.emitted:
            job.constraint.feed(job.prompt[-job.emitted :])
        return cls(job.params, job.seed, job.emitted, job.constraint)

    @property
    def greedy(self) -> bool:
        return self.params.temperature == 0

    @property
    def filtered(self) -> bool:
        p = self.params
        return not self.greedy and (p.top_p < 1 or p.top_k > 0 or p.min_p > 0)

    def uniform(self) -> float:
        """The number in (0, 1) that picks the token at `index`."""
        return uniform(self.seed, self.index)


@dataclass(eq=False)
class Picked:
    """The tokens of one step, still on the device until `read`.

    Attributes:
        tokens: (rows,) token ids.
        logprobs: (rows,) log probability of each.
        top: ids and log probabilities, each (rows, k), when a row asks for them.
    """

    tokens: mx.array
    logprobs: mx.array
    top: tuple[mx.array, mx.array] | None = None
    _read: tuple[list[float], list[list[int]], list[list[float]]] | None = None

    def arrays(self) -> list[mx.array]:
        return [self.tokens, self.logprobs, *(self.top or ())]

    def read(self, row: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        """Log probability of the row's token and its `top` alternatives, best first."""
        if self._read is None:
            ids, values = map(_lists, self.top) if self.top else ([], [])
            self._read = _lists(self.logprobs), ids, values
        logprobs, ids, values = self._read
        if not top:
            return logprobs[row], ()
        known = zip(ids[row], values[row], strict=True)
        # A grammar rules tokens out, and what cannot come is no alternative.
        best = sorted((p for p in known if p[1] > -math.inf), key=lambda pair: -pair[1])
        return logprobs[row], tuple(best[:top])


@dataclass(eq=False)
class Rows:
    """The rows of one batch and their parameters as arrays, made once per line-up."""

    rows: Sequence[Row]
    temperature: mx.array = field(init=False)
    top_p: mx.array = field(init=False)
    top_k: mx.array = field(init=False)
    min_p: mx.array = field(init=False)

    def __post_init__(self) -> None:
        def column(values: list[float]) -> mx.array:
            return mx.array(values, dtype=mx.float32)[:, None]

        params = [row.params for row in self.rows]
        self.constrained = any(row.constraint is not None for row in self.rows)
        self.greedy = all(row.greedy for row in self.rows)
        self.any_greedy = any(row.greedy for row in self.rows)
        self.any_filtered = any(row.filtered for row in self.rows)
        self.any_plain = any(not (row.greedy or row.filtered) for row in self.rows)
        self.top = max((p.top_logprobs for p in params), default=0)
        if self.greedy:
            return
        self.is_greedy = mx.array([row.greedy for row in self.rows])
        self.is_filtered = mx.array([row.filtered for row in self.rows])
        self.temperature = column([p.temperature or 1.0 for p in params])
        self.top_p = column([p.top_p for p in params])
        self.top_k = column([p.top_k or float("inf") for p in params])
        self.min_p = column([p.min_p for p in params])

    def constrain(self, logits: mx.array, latest: Sequence[int]) -> mx.array:
        """Leave each row only the tokens that its grammar allows.

        The device may compute the logits meanwhile: they are not waited for.

        Args:
            logits: (rows, vocabulary).
            latest: the token of each row that the logits follow on.
        """
        for row, token in zip(self.rows, latest, strict=True):
            # At first it is the prompt's last.
            if row.constraint is not None and row.constraint.fed < row.index:
                row.constraint.feed((token,))
        bits = next_tokens([row.constraint for row in self.rows])
        return logits if bits is None else _masked(logits, mx.array(bits))

    def pick(self, logits: mx.array) -> Picked:
        """Choose the next token of every row.

        Args:
            logits: (rows, vocabulary), of any float type.
        """
        logits = logits.astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        tokens = self._tokens(logprobs)
        for row in self.rows:
            row.index += 1
        chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1).squeeze(-1)
        return Picked(tokens, chosen, _top(logprobs, self.top) if self.top else None)

    def _tokens(self, logprobs: mx.array) -> mx.array:
        best = mx.argmax(logprobs, axis=-1)
        if self.greedy:
            return best
        uniform = mx.array([row.uniform() for row in self.rows])[:, None]
        # A row takes the same path whoever its neighbours are: the two number the
        # tokens in different orders, so they pick differently for one random number.
        if not self.any_filtered:
            tokens = self._plain(logprobs, uniform)
        elif not self.any_plain:
            tokens = self._filtered(logprobs, uniform)
        else:
            filtered = self._filtered(logprobs, uniform)
            tokens = mx.where(self.is_filtered, filtered, self._plain(logprobs, uniform))
        return mx.where(self.is_greedy, best, tokens) if self.any_greedy else tokens

    def _plain(self, logprobs: mx.array, uniform: mx.array) -> mx.array:
        scaled = logprobs / self.temperature
        weights = mx.exp(scaled - mx.max(scaled, axis=-1, keepdims=True))
        return _invert(weights, uniform)

    def _filtered(self, logprobs: mx.array, uniform: mx.array) -> mx.array:
        order = mx.argsort(-logprobs, axis=-1)
        ranked = mx.take_along_axis(logprobs, order, axis=-1)
        probs = mx.exp(ranked)
        above = mx.cumsum(probs, axis=-1, inclusive=False)
        keep = above < self.top_p
        keep &= mx.arange(ranked.shape[-1])[None] < self.top_k
        keep &= probs >= self.min_p * probs[:, :1]
        weights = mx.exp((ranked - ranked[:, :1]) / self.temperature)
        rank = _invert(mx.where(keep, weights, 0), uniform)
        return mx.take_along_axis(order, rank[:, None], axis=-1).squeeze(-1)


def uniform(seed: int, index: int) -> float:
    """A number strictly between 0 and 1 from (seed, index), by SplitMix64.

    24 random bits and a half, so that float32 holds it exactly.
    """
    z = (_mix(seed & _MASK) + (index + 1) * _GOLDEN) & _MASK
    return ((_mix(z) >> 40) + 0.5) / 2**24


def processors(params: SamplingParams) -> list[LogitsProcessor]:
    """mlx-lm's penalties and bias for these parameters; empty when none is on."""
    penalty = params.repetition_penalty
    return make_logits_processors(
        dict(params.logit_bias) or None,
        None if penalty == 1 else penalty,
        params.penalty_window,
        params.presence_penalty or None,
        params.penalty_window,
        params.frequency_penalty or None,
        params.penalty_window,
    )


def _lists(array: mx.array) -> Any:
    """The array's values; MLX's own annotation allows for a scalar."""
    return array.tolist()


def _invert(weights: mx.array, uniform: mx.array) -> mx.array:
    """The first place of each row where the running sum reaches its share `uniform`.

    A place of weight 0 is never it, since `uniform` is above 0 and below 1.
    """
    running = mx.cumsum(weights, axis=-1)
    return mx.argmax(running >= uniform * running[:, -1:], axis=-1)


def _top(logprobs: mx.array, k: int) -> tuple[mx.array, mx.array]:
    k = min(k, logprobs.shape[-1])
    ids = mx.argpartition(-logprobs, kth=k - 1, axis=-1)[:, :k]
    return ids, mx.take_along_axis(logprobs, ids, axis=-1)


def _masked(logits: mx.array, bits: mx.array) -> mx.array:
    """The logits, and -inf where a bit is 0.

    Args:
        logits: (rows, vocabulary).
        bits: (rows, bytes), lowest bit first; tokens beyond them are masked as well.
    """
    powers = mx.array([1 << bit for bit in range(8)], dtype=mx.uint8)
    allowed = ((bits[:, :, None] & powers) != 0).reshape(len(bits), -1)
    missing = logits.shape[-1] - allowed.shape[-1]
    if missing > 0:
        allowed = mx.pad(allowed, [(0, 0), (0, missing)])
    return mx.where(allowed[:, : logits.shape[-1]], logits, -math.inf)


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
