"""KV caches kept for prompts with a common beginning, within one limit for all models.

The entries of all models stand in one line, the first to go in front. Whatever is used or added
goes to the end. What a new entry holds for the most part as well goes to the front: a chat that
goes on needs its last turn only, and must not drive out another model's chat with those before.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import PromptTrie, can_trim_prompt_cache, trim_prompt_cache

from ..decode.decoder import Kind

UNBOUNDED = 2**63  # tokens
_MAX_ENTRIES = 256  # of all models; bytes are the real bound

_RANKS: dict[Kind, int] = {"assistant": 0, "user": 1, "system": 2}


@dataclass(eq=False)
class _Entry:
    """A KV cache that holds exactly these tokens."""

    owner: PrefixCache
    tokens: list[int]
    cache: list[Any]
    kind: Kind
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = sum(c.nbytes for c in self.cache)


class PrefixCaches:
    """One cache for each loaded model; they share one limit.

    A model's cache goes with it, so a reloaded model never finds an old entry.

    Args:
        max_bytes: for all caches together; 0 keeps nothing.

    Attributes:
        nbytes: what is kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._caches: dict[str, PrefixCache] = {}
        self._line: OrderedDict[_Entry, None] = OrderedDict()  # the first to go in front

    def open(
        self,
        model: str,
        *,
        max_tokens: int = UNBOUNDED,
        agree: Callable[[int], bool] | None = None,
    ) -> PrefixCache:
        """An empty cache for a model that was just loaded.

        Args:
            max_tokens: the longest prompt that can be kept, see `keepable_tokens`.
            agree: whether every rank that computes the model has this number; None where only
                this process does. What one of them does not have is of no use to the others.
        """
        self.drop(model)
        self._caches[model] = PrefixCache(self, max_tokens, agree)
        return self._caches[model]

    def max_tokens(self, model: str) -> int | None:
        """The longest prompt that is kept for a model, in tokens; None for any."""
        cache = self._caches.get(model)
        return None if cache is None or cache.max_tokens == UNBOUNDED else cache.max_tokens

    def drop(self, model: str) -> None:
        """Forget everything kept for a model."""
        cache = self._caches.pop(model, None)
        for entry in [entry for entry in self._line if entry.owner is cache]:
            self.remove(entry)

    def add(self, entry: _Entry) -> None:
        """Count an entry, and let others go for it."""
        self._line[entry] = None
        self.nbytes += entry.nbytes
        while self.nbytes > self.max_bytes or len(self._line) > _MAX_ENTRIES:
            first = next(iter(self._line))
            first.owner.forget(first)
            self.remove(first)

    def remove(self, entry: _Entry) -> None:
        """Count an entry no longer."""
        del self._line[entry]
        self.nbytes -= entry.nbytes

    def used(self, entry: _Entry) -> None:
        """Move an entry to the end of the line."""
        self._line.move_to_end(entry)

    def surpassed(self, entry: _Entry) -> None:
        """Move an entry to the front of the line."""
        self._line.move_to_end(entry, last=False)


class PrefixCache:
    """The kept prefixes of one model."""

    def __init__(
        self, owner: PrefixCaches, max_tokens: int, agree: Callable[[int], bool] | None
    ) -> None:
        self._owner = owner
        self._agree = agree
        self.max_tokens = max_tokens
        self._trie = PromptTrie()

    @property
    def keeps(self) -> bool:
        """Whether it keeps anything at all."""
        return min(self._owner.max_bytes, self.max_tokens) > 0

    def fetch(self, tokens: list[int]) -> tuple[list[Any] | None, list[int]]:
        """The longest kept prefix: a copy of its KV cache, and the tokens after it.

        At least one token is left, since decoding starts from one. The copy shares its arrays with
        what is kept until it is written to.
        """
        entry, held = self._longest(tokens[:-1])
        if self._agree is not None and not self._agree(held):
            return None, tokens
        if entry is None:
            return None, tokens
        self._owner.used(entry)
        cache = copy.deepcopy(entry.cache)
        if len(entry.tokens) > held:
            trim_prompt_cache(cache, len(entry.tokens) - held)
        return cache, tokens[held:]

    def _longest(self, within: list[int]) -> tuple[_Entry | None, int]:
        """The entry that holds most of these tokens from the first on, and how many."""
        found = self._trie.search(None, within)
        longer, shorter = self._at(found.exact or found.longer), self._at(found.shorter)
        held = len(within) if found.exact else found.common_prefix
        if longer is None or not (found.exact or can_trim_prompt_cache(longer.cache)):
            longer, held = None, 0
        if shorter is not None and len(shorter.tokens) >= held:
            longer, held = shorter, len(shorter.tokens)
        return (longer, held) if longer is not None and held else (None, 0)

    def insert(self, tokens: list[int], cache: list[Any], kind: Kind) -> None:
        """Keep a KV cache that holds exactly `tokens`."""
        if not (self.keeps and 0 < len(tokens) <= self.max_tokens):
            return
        if sum(c.nbytes for c in cache) > self._owner.max_bytes:
            return
        found = self._trie.search(None, tokens)
        longer = self._at(found.longer)
        cuttable = can_trim_prompt_cache(cache)
        if longer is not None and can_trim_prompt_cache(longer.cache):
            if found.common_prefix == len(tokens):
                self._owner.used(longer)  # it holds all of this
                return
            self._surpass(longer, found.common_prefix, kind)
        detach(cache)
        entry = _Entry(self, tokens, cache, kind)
        if before := self._trie.add(None, tokens, entry):
            self._owner.remove(before)
        if cuttable:  # it can be cut back to any of these
            for _, prefix in self._trie.pop_prefixes(None, tokens):
                self._owner.remove(prefix)
        elif shorter := self._at(found.shorter):
            self._surpass(shorter, len(shorter.tokens), kind)
        self._owner.add(entry)

    def forget(self, entry: _Entry) -> None:
        """Drop an entry; its owner no longer counts it."""
        self._trie.pop(None, entry.tokens)

    def _at(self, tokens: list[int] | None) -> _Entry | None:
        return None if tokens is None else self._trie.get(None, tokens)

    def _surpass(self, entry: _Entry, common: int, kind: Kind) -> None:
        """A new entry of this kind holds the first tokens of another, `common` of them."""
        if 2 * common >= len(entry.tokens) and _RANKS[entry.kind] <= _RANKS[kind]:
            self._owner.surpassed(entry)


def detach(cache: list[Any]) -> None:
    """Copy the cache's arrays out of the batch. A view of one row would keep all rows alive.

    Arrays that are whole buffers stay as they are.
    """
    copies: list[mx.array] = []

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, mx.array):
            return leaf
        copies.append(mx.contiguous(leaf))
        return copies[-1]

    for layer in cache:
        layer.state = tree_map(copy, layer.state)
    mx.eval(copies)
