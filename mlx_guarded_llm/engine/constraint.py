"""Holding one answer to its grammar while it is written.

A `Constraint` follows the tokens of one request and knows which may come next. That is
work for the CPU, done while the device computes the logits that its mask is for; see
`batch`. Nothing here imports mlx, and nothing raises: a grammar that fails says so in
`error`, and ends its own request only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..grammar.compiler import failure

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

Bits = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Thinking:
    """The thinking before an answer, in which the grammar does not hold yet.

    Attributes:
        opened: the prompt has opened it. If not, the first token of the answer may.
        start: the token that opens it.
        end: the tokens that end it.
        barred: tokens that must not come inside: those that end an answer, if the
            grammar is one that an answer must come to.
    """

    opened: bool
    start: int
    end: tuple[int, ...]
    barred: frozenset[int] = frozenset()


class Constraint:
    """The grammar of one answer and how far it has come.

    Its state follows from the tokens alone: a new one that was fed the same tokens goes
    on where this one is.

    Args:
        matcher: at the beginning of the grammar.
        vocabulary: tokens the matcher knows.
        thinking: what may come before, or None.

    Attributes:
        fed: tokens taken so far.
        error: why the answer cannot go on, or "".
    """

    def __init__(
        self, matcher: LLMatcher, *, vocabulary: int, thinking: Thinking | None = None
    ) -> None:
        self.matcher = matcher
        self.words = -(-vocabulary // 32)
        self.fed = 0
        self.error = ""
        self._form = thinking
        self._inside = thinking is not None and thinking.opened
        self._latest: deque[int] = deque(maxlen=len(thinking.end) if thinking else 0)

    def feed(self, tokens: Iterable[int]) -> None:
        """Take the next tokens of the answer."""
        for token in tokens:
            may_open = self._may_open
            self.fed += 1
            if self._inside:
                self._think(token)
            elif may_open and self._form is not None and token == self._form.start:
                self._inside = True
            elif not self.error:
                self.matcher.consume_token(token)
                self.error = failure(self.matcher)

    @property
    def holds(self) -> bool:
        """The next token is the grammar's to choose."""
        return not (self._inside or self.error)

    def adjust(self, bits: Bits) -> None:
        """Change the mask of the next token to allow for thinking.

        Args:
            bits: (words,), a bit a token: the matcher's mask if it `holds`, else ones.
        """
        if self._form is None:
            return
        if self._may_open:
            _set(bits, self._form.start, on=True)
        elif self._inside:
            for token in self._form.barred:
                _set(bits, token, on=False)

    @property
    def is_free(self) -> bool:
        """Any token may come next."""
        return not self.holds and not (self._inside and self._form and self._form.barred)

    @property
    def _may_open(self) -> bool:
        return self._form is not None and not self._form.opened and self.fed == 0

    def _think(self, token: int) -> None:
        assert self._form is not None
        self._latest.append(token)
        self._inside = tuple(self._latest) != self._form.end


def next_tokens(constraints: Sequence[Constraint | None]) -> npt.NDArray[np.uint8] | None:
    """Which tokens may come next in each row of a batch.

    Args:
        constraints: of the rows; None where there is none.

    Returns:
        (rows, bytes); bit *j* of byte *k* stands for the token 8 k + j. None when every
        row is free.
    """
    bound = [(i, c) for i, c in enumerate(constraints) if c is not None and not c.is_free]
    if not bound:
        return None
    bits: Bits = np.full((len(constraints), bound[0][1].words), -1, dtype=np.int32)
    matchers = [(c.matcher, i) for i, c in bound if c.holds]
    if len(matchers) == 1:
        matcher, row = matchers[0]
        matcher.unsafe_compute_mask_ptr(bits[row].ctypes.data, bits[row].nbytes)
    elif matchers:
        _executor().unsafe_compute_mask_ptr(
            matchers, bits.ctypes.data, bits[0].nbytes, len(constraints)
        )
    for row, constraint in bound:
        constraint.adjust(bits[row])
    return bits.view(np.uint8)


@cache
def _executor() -> LLExecutor:
    """The threads that compute masks of several rows at once; one pool for the process."""
    import llguidance

    return llguidance.LLExecutor()


def _set(bits: Bits, token: int, *, on: bool) -> None:
    word: Any = bits.view(np.uint32)
    bit = np.uint32(1 << (token % 32))
    if on:
        word[token // 32] |= bit
    else:
        word[token // 32] &= ~bit
