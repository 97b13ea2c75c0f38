"""Making one answer follow its grammar, and its thinking end, while it is generated.

A `Constraint` follows the tokens of one request and knows which may come next. It works on the
CPU, while the device computes the logits that its mask is for; see `batch`. Nothing here imports
mlx, and nothing raises: a grammar that fails sets `error`, which ends only its own request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...grammar.compiler import failure

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

Bits = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Thinking:
    """The thinking before an answer, to which a grammar does not apply.

    Attributes:
        opened: the prompt opens it; otherwise the first token of the answer may.
        start: the token that opens it.
        end: the tokens that end it.
        barred: tokens that must not occur in it: those that end an answer, if the answer must
            reach the grammar.
        blank: tokens that may come before the one that opens it.
        budget: the most tokens of it; after as many the end is the only way on. None is no limit.
    """

    opened: bool
    start: int
    end: tuple[int, ...]
    barred: frozenset[int] = frozenset()
    blank: frozenset[int] = frozenset()
    budget: int | None = None


class Constraint:
    """The grammar of one answer and the bounds of its thinking, and how far the answer has come.

    Its state depends only on the tokens: a new constraint that is fed the same tokens continues
    where this one is.

    Args:
        matcher: at the beginning of the grammar, or None if there is none.
        vocabulary: how many tokens the matcher knows, or a compiler's would.
        thinking: what may come before the answer, or None.

    Attributes:
        fed: how many tokens it was fed.
        error: why the answer cannot continue, or "".
    """

    def __init__(
        self, matcher: LLMatcher | None, *, vocabulary: int, thinking: Thinking | None = None
    ) -> None:
        self.matcher = matcher
        self.words = -(-vocabulary // 32)
        self.fed = 0
        self.error = ""
        self._form = thinking
        self._inside = thinking is not None and thinking.opened
        self._may_open = thinking is not None and not thinking.opened
        self._thoughts = 0  # tokens of the thinking, its markers not counted
        self._latest: deque[int] = deque(maxlen=len(thinking.end) if thinking else 0)

    def feed(self, tokens: Iterable[int]) -> None:
        """Take the next tokens of the answer."""
        for token in tokens:
            self.fed += 1
            if self._inside:
                self._think(token)
                continue
            form = self._form if self._may_open else None
            self._inside = form is not None and token == form.start
            self._may_open = form is not None and token in form.blank
            if self.matcher is not None and not (self._inside or self.error):
                self.matcher.consume_token(token)
                self.error = failure(self.matcher)

    @property
    def holds(self) -> bool:
        """The next token is the grammar's to choose."""
        return self.matcher is not None and not (self._inside or self.error)

    def adjust(self, bits: Bits) -> None:
        """Change the mask of the next token to allow for thinking.

        Args:
            bits: (words,), a bit a token: the matcher's mask if it `holds`, else ones.
        """
        if self._form is None:
            return
        if self._may_open:
            _set(bits, self._form.start, on=True)
        elif self._spent:
            bits[:] = 0
            _set(bits, self._form.end[self._ending()], on=True)
        elif self._inside:
            for token in self._form.barred:
                _set(bits, token, on=False)

    @property
    def is_free(self) -> bool:
        """Any token may come next."""
        barred = self._inside and self._form is not None and bool(self._form.barred)
        return not (self.holds or barred or self._spent)

    @property
    def _spent(self) -> bool:
        """The thinking has had all its tokens, and must end."""
        budget = None if self._form is None else self._form.budget
        return self._inside and budget is not None and self._thoughts >= budget

    def _think(self, token: int) -> None:
        assert self._form is not None
        self._thoughts += 1
        self._latest.append(token)
        self._inside = tuple(self._latest) != self._form.end

    def _ending(self) -> int:
        """How many tokens of the end have come already."""
        assert self._form is not None
        end, latest = self._form.end, tuple(self._latest)
        return next(n for n in reversed(range(len(end))) if latest[len(latest) - n :] == end[:n])


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
    matchers = [(c.matcher, i) for i, c in bound if c.matcher is not None and c.holds]
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
