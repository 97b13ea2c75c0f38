"""The markers around the thinking of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...models.chat import thinking_markers
from ..prompt.tokenizer_cache import cached_per_tokenizer

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper


class Markers(NamedTuple):
    """The markers before and after the thinking, as text and as tokens.

    Attributes:
        are_tokens: the markers are tokens of their own. Otherwise a tokenizer may join them with
            the text next to them.
    """

    start: str
    end: str
    start_tokens: tuple[int, ...]
    end_tokens: tuple[int, ...]
    are_tokens: bool = True

    def last_start(self, tokens: Sequence[int], first: int) -> int:
        """The index at which the last thinking begins, from `first` on; -1 if there is none."""
        length = len(self.start_tokens)
        places = reversed(range(max(first, 0), len(tokens) - length + 1))
        return next((i for i in places if tuple(tokens[i : i + length]) == self.start_tokens), -1)


@cached_per_tokenizer
def thinking(tokenizer: TokenizerWrapper) -> Markers | None:
    """The markers of a model's thinking; None for one that does not think."""
    if tokenizer.has_thinking:
        return Markers(
            tokenizer.think_start,
            tokenizer.think_end,
            tuple(tokenizer.think_start_tokens),
            tuple(tokenizer.think_end_tokens),
        )
    vocabulary = tokenizer.get_vocab()
    others = thinking_markers(vocabulary, tokenizer.chat_template)
    if others is None:
        return None
    start, end = (tuple(tokenizer.encode(m, add_special_tokens=False)) for m in others)
    return Markers(*others, start, end, all(marker in vocabulary for marker in others))
