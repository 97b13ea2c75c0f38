"""KV caches kept for prompts with a common beginning, within one limit for all models."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import LRUPromptCache

UNBOUNDED = 2**63  # tokens
_MAX_ENTRIES = 64  # per model; bytes are the real bound


class PrefixCaches:
    """One cache for each loaded model; they share one limit.

    A model's cache goes with it, so a reloaded model never finds an old entry.

    Args:
        max_bytes: for all caches together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._caches: dict[str, PrefixCache] = {}  # least recently used first

    def open(self, model: str, *, max_tokens: int = UNBOUNDED) -> PrefixCache:
        """An empty cache for a model that was just loaded.

        Args:
            max_tokens: the longest prompt that can be kept, see `keepable_tokens`.
        """
        self._caches[model] = PrefixCache(self, model, max_tokens)
        return self._caches[model]

    def max_tokens(self, model: str) -> int | None:
        """The longest prompt that is kept for a model, in tokens; None for any."""
        cache = self._caches.get(model)
        return None if cache is None or cache.max_tokens == UNBOUNDED else cache.max_tokens

    def drop(self, model: str) -> None:
        """Forget everything kept for a model."""
        self._caches.pop(model, None)

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    def used(self, model: str) -> None:
        """Mark this model's cache as the most recently used, and enforce the limit."""
        if model in self._caches:
            self._caches[model] = self._caches.pop(model)
        for cache in self._caches.values():
            excess = self.nbytes - self.max_bytes
            if excess <= 0:
                break
            cache.trim(cache.nbytes - excess)


class PrefixCache:
    """The kept prefixes of one model."""

    def __init__(self, owner: PrefixCaches, model: str, max_tokens: int) -> None:
        self._owner = owner
        self.max_tokens = max_tokens
        self._model = model
        self._lru = LRUPromptCache(max_size=_MAX_ENTRIES, max_bytes=max(owner.max_bytes, 1))

    @property
    def nbytes(self) -> int:
        return int(self._lru.nbytes)

    @property
    def keeps(self) -> bool:
        """Whether it keeps anything at all."""
        return min(self._owner.max_bytes, self.max_tokens) > 0

    def fetch(self, tokens: list[int]) -> tuple[list[Any] | None, list[int]]:
        """The longest kept prefix: a copy of its KV cache, and the tokens after it.

        At least one token is left, since decoding starts from one.
        """
        cache, rest = self._lru.fetch_nearest_cache(self._model, tokens)
        if cache is None or not rest:
            return None, tokens
        self._owner.used(self._model)
        return cache, rest

    def insert(self, tokens: list[int], cache: list[Any], kind: str) -> None:
        """Keep a KV cache that holds exactly `tokens`.

        Args:
            kind: "system", "user" or "assistant"; the last is evicted first.
        """
        if not (self.keeps and 0 < len(tokens) <= self.max_tokens):
            return
        if sum(c.nbytes for c in cache) > self._owner.max_bytes:
            return
        detach(cache)
        self._lru.insert_cache(self._model, tokens, cache, cache_type=kind)
        self._owner.used(self._model)

    def trim(self, nbytes: int) -> None:
        """Evict entries until at most this many bytes are kept."""
        self._lru.trim_to(n_bytes=max(nbytes, 0))


def detach(cache: list[Any]) -> None:
    """Copy the cache's arrays out of the batch. A view of one row would keep all rows alive."""
    copies: list[mx.array] = []

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, mx.array):
            return leaf
        copies.append(mx.contiguous(leaf))
        return copies[-1]

    for layer in cache:
        layer.state = tree_map(copy, layer.state)
    mx.eval(copies)
