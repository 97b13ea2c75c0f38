"""Caching what is found out about a tokenizer and its template, for as long as it lives."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

T = TypeVar("T")


def cached_per_tokenizer(
    find_out: Callable[[TokenizerWrapper], T],
) -> Callable[[TokenizerWrapper], T]:
    """Cache what a function finds out about each tokenizer. Its template must not change."""
    known: WeakKeyDictionary[TokenizerWrapper, T] = WeakKeyDictionary()

    @wraps(find_out)
    def cached(tokenizer: TokenizerWrapper) -> T:
        try:
            return known[tokenizer]
        except KeyError:
            known[tokenizer] = found = find_out(tokenizer)
            return found

    return cached
