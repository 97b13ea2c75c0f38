"""Penalties for recent tokens, and biases, for all rows of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from ...params import SamplingParams
from .conversion import column

_NONE = -1  # marks places of rows that have fewer tokens
_AHEAD = 256  # tokens after which the windows are laid out anew


@dataclass(eq=False)
class Penalties:
    """The penalties and biases of the rows of a batch, as arrays.

    They are those of `mlx_lm.sample_utils.make_logits_processors`, in the same order: bias,
    repetition, presence, frequency. There, each row has its own chain of processors.

    Args:
        params: of each row.
    """

    params: Sequence[SamplingParams]

    def __post_init__(self) -> None:
        self._biased = any(p.logit_bias for p in self.params)
        self._penalised = any(_penalised(p) for p in self.params)
        # A row without penalties only looks at its latest token, and changes nothing.
        self._windows = [p.penalty_window if _penalised(p) else 1 for p in self.params]
        self._repetition = column([p.repetition_penalty or 1.0 for p in self.params])
        self._presence = column([p.presence_penalty for p in self.params])
        self._frequency = column([p.frequency_penalty for p in self.params])
        self._bias: mx.array | None = None
        # The tokens before the latest, newest last. They stay on the device: filling an array
        # from the host would cost a GPU more than the penalties.
        self._recent: mx.array | None = None
        self._inside: mx.array | None = None  # which of them are in a row's window
        self._steps = 0

    def apply(
        self, logits: mx.array, histories: Sequence[Sequence[int]], latest: mx.array
    ) -> mx.array:
        """The logits with bias and penalties. Call it for each token, in order.

        Args:
            logits: (rows, vocabulary).
            histories: the tokens of each row, prompt included, up to the latest.
            latest: (rows,) the tokens after which the logits come; they may not be computed yet.
        """
        if self._biased:
            logits = logits + self._dense_bias(logits.shape[-1])
        return self._penalise(logits, histories, latest) if self._penalised else logits

    def _penalise(
        self, logits: mx.array, histories: Sequence[Sequence[int]], latest: mx.array
    ) -> mx.array:
        if self._recent is None or self._inside is None or self._steps == _AHEAD:
            self._recent, self._inside = self._lay_out(histories)
            self._steps = 0
        latest = latest[:, None].astype(mx.int32)
        counted = (self._recent != _NONE) & self._inside
        # Places that do not count are filled with the latest token, which does. It gets a single
        # new value, however often it is written.
        ids = mx.concatenate([mx.where(counted, self._recent, latest), latest], axis=-1)
        once = mx.concatenate([counted, mx.ones(latest.shape, mx.bool_)], axis=-1)
        row = mx.arange(len(self.params))[:, None]
        often = mx.zeros(logits.shape).at[row, ids].add(once.astype(mx.float32))
        often = mx.take_along_axis(often, ids, axis=-1)
        values = mx.take_along_axis(logits, ids, axis=-1)
        values = mx.where(values < 0, values * self._repetition, values / self._repetition)
        values = values - self._presence - self._frequency * often
        self._recent = mx.concatenate([self._recent, latest], axis=-1)[:, 1:]
        self._steps += 1
        return mx.put_along_axis(logits, ids, values, axis=-1)

    def _lay_out(self, histories: Sequence[Sequence[int]]) -> tuple[mx.array, mx.array]:
        """The recent tokens of each row, (rows, width), and which places its window covers."""
        sizes = [
            min(window - 1, len(history) + _AHEAD)
            for history, window in zip(histories, self._windows, strict=True)
        ]
        width = max(sizes)
        tokens = [list(history[max(0, len(history) - width) :]) for history in histories]
        recent = [[_NONE] * (width - len(row)) + row for row in tokens]
        places = mx.arange(width)[None]
        shape = (len(recent), width)
        return mx.array(recent, dtype=mx.int32).reshape(shape), places >= width - mx.array(sizes)[
            :, None
        ]

    def _dense_bias(self, vocabulary: int) -> mx.array:
        """(rows, vocabulary): the bias of each logit."""
        if self._bias is None:
            rows = [i for i, p in enumerate(self.params) for _ in p.logit_bias]
            tokens = [token for p in self.params for token in p.logit_bias]
            values = [value for p in self.params for value in p.logit_bias.values()]
            empty = mx.zeros((len(self.params), vocabulary))
            self._bias = empty.at[mx.array(rows), mx.array(tokens)].add(mx.array(values))
        return self._bias


def changes_logits(params: SamplingParams) -> bool:
    """Whether a request has a bias or a penalty."""
    return bool(params.logit_bias) or _penalised(params)


def without_penalties(params: SamplingParams) -> SamplingParams:
    """The same parameters without bias and penalties."""
    return replace(
        params,
        logit_bias={},
        repetition_penalty=None,
        presence_penalty=0.0,
        frequency_penalty=0.0,
    )


def _penalised(params: SamplingParams) -> bool:
    repetition = params.repetition_penalty not in (None, 1)
    return repetition or params.presence_penalty != 0 or params.frequency_penalty != 0
