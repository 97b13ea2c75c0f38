"""What proposes the next tokens of an answer before its model computes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from ..residency.prefix import PrefixCache
from .conversion import lists
from .penalties import without_penalties
from .sampling import Row, Rows

_NGRAM = 3  # tokens that must repeat before what followed them is proposed


class Draft(Protocol):
    """Proposes tokens for one answer at a time. A wrong proposal costs time, and nothing else."""

    def begin(self, history: list[int]) -> None:
        """Propose for another answer from now on.

        Args:
            history: the tokens of its prompt and of itself; others are appended as it grows.
        """

    def ready(self, chunk: int) -> bool:
        """Whether it is worth asking now what comes after the history.

        Args:
            chunk: the most tokens to compute in this call.
        """

    def propose(self, pending: mx.array, row: Row, most: int) -> mx.array | None:
        """(tokens,) up to `most` that may follow; None if there is no guess. Call `ready` before.

        Args:
            pending: (1,) the token after the history.
            row: says how the model samples the tokens to propose.
        """

    def settle(self, accepted: int) -> None:
        """The pending token and so many of the proposed ones are in the history now."""

    def end(self) -> None:
        """The answer is over."""


class PromptLookup:
    """Proposes what followed the last time that the latest tokens occurred.

    No second model is needed. It is right where an answer quotes its prompt or repeats itself.
    """

    def __init__(self) -> None:
        self.begin([])

    def begin(self, history: list[int]) -> None:
        """See `Draft.begin`."""
        self._history = history
        self._after: dict[tuple[int, ...], int] = {}  # n-grams, and where it goes on after them
        self._indexed = _NGRAM - 1  # tokens at the end of which n-grams were looked for

    def ready(self, chunk: int) -> bool:
        """See `Draft.ready`. The latest tokens have occurred before."""
        del chunk
        history = self._history
        # Nothing follows the last n-gram yet.
        for end in range(self._indexed + 1, len(history)):
            self._after[tuple(history[end - _NGRAM : end])] = end
            self._indexed = end
        return tuple(history[-_NGRAM:]) in self._after

    def propose(self, pending: mx.array, row: Row, most: int) -> mx.array | None:
        """See `Draft.propose`."""
        del row
        history = self._history
        start = self._after.get((*history[len(history) + 1 - _NGRAM :], *lists(pending)))
        return None if start is None else mx.array(history[start : start + most])

    def settle(self, accepted: int) -> None:
        """See `Draft.settle`."""

    def end(self) -> None:
        """See `Draft.end`."""
        self.begin([])


class DraftModel:
    """A smaller model with the same tokens.

    It samples as its model does, with the same random number for each token, so it is right more
    often than if it always proposed its likeliest token.

    Args:
        model: an mlx-lm model whose caches can be trimmed.
        prefix: keeps its KV caches.
        vocabulary: how many ids both models know; 0 if unknown.
    """

    def __init__(self, model: Any, prefix: PrefixCache, vocabulary: int) -> None:
        self._model = model
        self._prefix = prefix
        self._largest = vocabulary - 1
        self._history: list[int] = []
        self._cache: list[Any] = []
        self._held = 0  # tokens of the history that are in the cache
        self._proposed = 0

    def begin(self, history: list[int]) -> None:
        """See `Draft.begin`."""
        cache, rest = self._prefix.fetch(list(history))
        self._history = history
        self._cache = cache if cache is not None else make_prompt_cache(self._model)
        self._held = len(history) - len(rest)

    def ready(self, chunk: int) -> bool:
        """See `Draft.ready`. What is missing in the cache is computed in chunks."""
        # The last of its guesses is never in the cache, and is computed with the pending token.
        if len(self._history) - self._held > 1:
            part = self._history[self._held : self._held + chunk]
            tokens = self._known(mx.array(part, dtype=mx.uint32))
            self._model(tokens[None], cache=self._cache)
            mx.eval([cache.state for cache in self._cache])
            self._held += len(part)
        return len(self._history) - self._held <= 1

    def propose(self, pending: mx.array, row: Row, most: int) -> mx.array | None:
        """See `Draft.propose`."""
        missing = mx.array(self._history[self._held :], dtype=pending.dtype)
        inputs = self._known(mx.concatenate([missing, pending]))
        # Penalties would need the tokens on this thread; without them a few more guesses are wrong.
        rows = Rows([replace(row, params=without_penalties(row.params))])
        drafted: list[mx.array] = []
        for _ in range(most):
            logits = self._model(inputs[None], cache=self._cache)[:, -1, :]
            inputs = self._known(rows.pick(logits).tokens)
            mx.async_eval(inputs)  # type: ignore[no-untyped-call]
            drafted.append(inputs)
        self._held = len(self._history) + most  # with the pending token, without the last guess
        self._proposed = most
        return mx.concatenate(drafted)

    def settle(self, accepted: int) -> None:
        """See `Draft.settle`."""
        surplus = max(self._proposed - 1 - accepted, 0)
        trim_prompt_cache(self._cache, surplus)
        self._held -= surplus

    def end(self) -> None:
        """See `Draft.end`. Its cache is kept for an answer that begins in the same way."""
        self._prefix.insert(self._history[: self._held], self._cache, "assistant")
        self._history, self._cache, self._held = [], [], 0

    def _known(self, tokens: mx.array) -> mx.array:
        """The tokens, but another one for any that one of the models has no embedding for."""
        if self._largest < 0:
            return tokens
        return mx.minimum(tokens, self._largest).astype(tokens.dtype)
