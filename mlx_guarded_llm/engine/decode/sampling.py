"""Choosing tokens: one call for the whole batch, each row by its own parameters.

`BatchGenerator` samples a batch of mixed parameters row by row. Here, rows that are sampled in
the same way form a group, their parameters are arrays, and randomness is counter-based: the
number that picks token *i* is a function of (seed, i) only. So a request gets the same tokens
alone, in a batch, and when it is resumed at token *i*.

The filters are those of `mlx_lm.sample_utils`. They apply to the model's own distribution, and
temperature comes after them. Nothing here raises, as parameters were checked before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import mlx.core as mx
import numpy as np

from ...params import SamplingParams
from .constraint import Constraint, next_tokens
from .conversion import column, lists
from .decoder import TokenSequence
from .penalties import Penalties, changes_logits

# How a token is chosen: the most likely one; or sampled from the whole vocabulary, from the k most
# likely, or from a ranking of all.
Way = Literal["greedy", "whole", "top_k", "top_p"]

_COLDEST = 2.0**-126  # a lower temperature is 0 in float32, which means greedy

# SplitMix64.
_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(eq=False)
class Row:
    """The sampling state of one request in a batch.

    Attributes:
        params: of the request.
        seed: never None; a random one was chosen before.
        index: tokens sampled so far; a resumed request starts above 0.
        constraint: the grammar that the answer must follow, if any.
        share: see `TokenSequence`; the same for all rows of a batch.
    """

    params: SamplingParams
    seed: int
    index: int = 0
    constraint: Constraint | None = None
    share: Callable[[mx.array], mx.array] | None = None

    @classmethod
    def of(cls, sequence: TokenSequence) -> Row:
        """The state of a request that is about to begin or to be resumed."""
        if sequence.constraint is not None and sequence.emitted:
            sequence.constraint.feed(sequence.prompt[-sequence.emitted :])
        return cls(
            sequence.params, sequence.seed, sequence.emitted, sequence.constraint, sequence.share
        )

    @property
    def way(self) -> Way:
        """How its tokens are picked. It does not depend on the other rows."""
        p = self.params
        if (p.temperature or 0) < _COLDEST:
            return "greedy"
        if p.top_k:
            return "top_k"
        return "top_p" if p.top_p is not None and p.top_p < 1 else "whole"


@dataclass(eq=False)
class Picked:
    """The tokens of one step, still on the device until `read`.

    Attributes:
        tokens: (rows,) token ids.
        logprobs: (rows,) log probability of each.
        top: ids and log probabilities of the best, each (rows, k), if a row asks for them.
    """

    tokens: mx.array
    logprobs: mx.array
    top: tuple[mx.array, mx.array] | None = None
    _read: tuple[list[float], list[list[int]], list[list[float]]] | None = None

    def arrays(self) -> list[mx.array]:
        return [self.tokens, self.logprobs, *(self.top or ())]

    def read(self, row: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        """The log probability of a row's token, and its `top` best alternatives."""
        if self._read is None:
            ids, values = map(lists, self.top) if self.top else ([], [])
            self._read = lists(self.logprobs), ids, values
        logprobs, ids, values = self._read
        if not top:
            return logprobs[row], ()
        known = zip(ids[row], values[row], strict=True)
        # Tokens that a grammar rules out are no alternatives.
        best = sorted((p for p in known if p[1] > -math.inf), key=lambda pair: -pair[1])
        return logprobs[row], tuple(best[:top])


@dataclass(eq=False)
class Rows:
    """The rows of one batch, with their parameters as arrays. Made anew when a row joins or leaves.

    Attributes:
        constrained: at least one row has a grammar.
        penalised: at least one row has a bias or a penalty.
        top: the largest number of alternatives that a row asks for.
    """

    rows: Sequence[Row]

    def __post_init__(self) -> None:
        params = [row.params for row in self.rows]
        self.constrained = any(row.constraint is not None for row in self.rows)
        self.top = max((p.top_logprobs for p in params), default=0)
        self.penalised = any(map(changes_logits, params))
        self._penalties = Penalties(params) if self.penalised else None
        self._share = self.rows[0].share if self.rows else None
        ways: dict[Way, list[int]] = {}
        for i, row in enumerate(self.rows):
            ways.setdefault(row.way, []).append(i)
        self._groups = [_Group(way, [self.rows[i] for i in places]) for way, places in ways.items()]
        self._places = [mx.array(places) for places in ways.values()]
        places = [place for group in ways.values() for place in group]
        self._order = mx.array(sorted(range(len(places)), key=places.__getitem__))

    def penalise(
        self, logits: mx.array, histories: Sequence[Sequence[int]], latest: mx.array
    ) -> mx.array:
        """Apply the biases and penalties of the rows that have any.

        Args:
            logits: (rows, vocabulary).
            histories: the tokens of each row, including the prompt, up to the latest.
            latest: (rows,) the tokens after which the logits come.
        """
        if self._penalties is None:
            return logits
        return self._penalties.apply(logits.astype(mx.float32), histories, latest)

    def constrain(self, logits: mx.array, latest: Sequence[int]) -> mx.array:
        """Mask the tokens that the grammar of each row does not allow.

        This does not wait for the logits, which the device may still be computing.

        Args:
            logits: (rows, vocabulary).
            latest: the token of each row after which the logits come.
        """
        for row, token in zip(self.rows, latest, strict=True):
            # At first that is the last token of the prompt.
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
        total = mx.logsumexp(logits, axis=-1, keepdims=True)
        tokens = self._tokens(logits, total)
        if self._share is not None:
            tokens = self._share(tokens)
        for row in self.rows:
            row.index += 1
        chosen = (mx.take_along_axis(logits, tokens[:, None], axis=-1) - total).squeeze(-1)
        return Picked(tokens, chosen, _top(logits, total, self.top) if self.top else None)

    def _tokens(self, logits: mx.array, total: mx.array) -> mx.array:
        if len(self._groups) == 1:
            return self._groups[0].pick(logits, total)
        parts = [
            group.pick(logits[places], total[places])
            for group, places in zip(self._groups, self._places, strict=True)
        ]
        return mx.concatenate(parts)[self._order]


@dataclass(eq=False)
class _Group:
    """Rows whose tokens are picked in the same way."""

    way: Way
    rows: Sequence[Row]
    temperature: mx.array = field(init=False)
    top_p: mx.array = field(init=False)
    top_k: mx.array = field(init=False)
    least: mx.array = field(init=False)  # log of min_p: how far below the best a logit may be
    _randomness: mx.array = field(init=False)

    def __post_init__(self) -> None:
        if self.way == "greedy":
            return  # parameters do not matter, and a row may join at each step
        params = [row.params for row in self.rows]
        self.temperature = column([p.temperature or 1.0 for p in params])
        self.top_p = column([p.top_p or 1.0 for p in params])
        self.top_k = column([p.top_k or 0 for p in params])
        self.most = max(p.top_k or 0 for p in params)
        self._randomness = randomness(self.rows)
        self.least = column([math.log(p.min_p) if p.min_p else -math.inf for p in params])

    def pick(self, logits: mx.array, total: mx.array) -> mx.array:
        """Token ids, (rows,).

        Args:
            logits: (rows, vocabulary).
            total: (rows, 1) their log-sum-exp.
        """
        if self.way == "greedy":
            return mx.argmax(logits, axis=-1)
        uniform = uniforms(self._randomness)[:, None]
        self._randomness = self._randomness + _uint64(_GOLDEN)
        if self.way == "whole":
            return _invert(self._weights(logits - mx.max(logits, axis=-1, keepdims=True)), uniform)
        ids, ranked = self._ranked(logits)
        weights = self._weights(ranked - ranked[:, :1])
        keep = mx.cumsum(mx.exp(ranked - total), axis=-1, inclusive=False) < self.top_p
        if self.way == "top_k":
            keep &= mx.arange(ranked.shape[-1])[None] < self.top_k
        rank = _invert(mx.where(keep, weights, 0), uniform)
        return mx.take_along_axis(ids, rank[:, None], axis=-1).squeeze(-1)

    def _weights(self, below: mx.array) -> mx.array:
        """Unnormalised probabilities, from how far each logit is below the best one."""
        return mx.where(below >= self.least, mx.exp(below / self.temperature), 0)

    def _ranked(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        """The ids of the tokens that may be picked, best first, and their logits."""
        if self.way == "top_k" and self.most < logits.shape[-1]:
            best = mx.argpartition(-logits, kth=self.most - 1, axis=-1)[:, : self.most]
            best = mx.sort(best, axis=-1)  # ties are broken by id, as in a full sort
            of_best = mx.take_along_axis(logits, best, axis=-1)
            order = mx.argsort(-of_best, axis=-1)
            ids = mx.take_along_axis(best, order, axis=-1)
            return ids, mx.take_along_axis(of_best, order, axis=-1)
        ids = mx.argsort(-logits, axis=-1)
        return ids, mx.take_along_axis(logits, ids, axis=-1)


def randomness(rows: Sequence[Row]) -> mx.array:
    """(rows,) of uint64: the state from which the next random number of each row is made.

    It depends on (seed, index) only, and stays on the device, where `_GOLDEN` is added for each
    token. Filling an array from the host would cost a GPU more than choosing the tokens.
    """
    states = [(_mix(row.seed & _MASK) + (row.index + 1) * _GOLDEN) & _MASK for row in rows]
    return _uint64(states)


def uniforms(states: mx.array) -> mx.array:
    """Numbers strictly between 0 and 1, (rows,) of float32, by SplitMix64.

    Each has 23 random bits plus one half, which float32 represents exactly.
    """
    z = (states ^ (states >> 30)) * _uint64(_FIRST)
    z = (z ^ (z >> 27)) * _uint64(_SECOND)
    return (((z ^ (z >> 31)) >> 41).astype(mx.float32) + 0.5) / 2**23


def _invert(weights: mx.array, uniform: mx.array) -> mx.array:
    """The first index of each row where the running sum reaches `uniform` of the total.

    An index of weight 0 is never chosen, since `uniform` is above 0 and below 1.
    """
    running = mx.cumsum(weights, axis=-1)
    return mx.argmax(running >= uniform * running[:, -1:], axis=-1)


def _top(logits: mx.array, total: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Ids and log probabilities of the k most likely tokens, unordered."""
    k = min(k, logits.shape[-1])
    ids = mx.argpartition(-logits, kth=k - 1, axis=-1)[:, :k]
    return ids, mx.take_along_axis(logits, ids, axis=-1) - total


def _masked(logits: mx.array, bits: mx.array) -> mx.array:
    """The logits, and -inf where a bit is 0.

    Args:
        logits: (rows, vocabulary).
        bits: (rows, bytes), lowest bit first; tokens beyond the last bit are masked too.
    """
    powers = mx.array([1 << bit for bit in range(8)], dtype=mx.uint8)
    allowed = ((bits[:, :, None] & powers) != 0).reshape(len(bits), -1)
    missing = logits.shape[-1] - allowed.shape[-1]
    if missing > 0:
        allowed = mx.pad(allowed, [(0, 0), (0, missing)])
    return mx.where(allowed[:, : logits.shape[-1]], logits, -math.inf)


def _uint64(values: int | list[int]) -> mx.array:
    """An array of uint64. MLX itself accepts Python integers only up to 2**63."""
    return mx.array(np.array(values, dtype=np.uint64))


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)
