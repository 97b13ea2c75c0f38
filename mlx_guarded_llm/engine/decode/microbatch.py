"""Which texts are embedded together, for short steps, little padding and short waits."""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(eq=False)
class EncodedTexts:
    """The texts of one request.

    Attributes:
        texts: token ids of each.
        vectors: of the texts that are done, by their index.
        cancelled: it was cancelled while its texts were still being encoded.
    """

    request_id: str
    texts: list[npt.NDArray[np.int32]] = field(default_factory=list)
    vectors: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    cancelled: bool = False

    @property
    def tokens(self) -> int:
        """How many tokens all its texts have."""
        return sum(map(len, self.texts))

    @property
    def longest(self) -> int:
        """How many tokens its longest text has."""
        return max(map(len, self.texts))


Row = tuple[EncodedTexts, int]  # a text: its request, and its index there


class _Waiting:
    """A request and its texts that are not done, as (tokens, index), shortest first."""

    def __init__(self, encoded: EncodedTexts) -> None:
        self.encoded = encoded
        self.texts = sorted((len(text), i) for i, text in enumerate(encoded.texts))

    @property
    def longest(self) -> int:
        return self.texts[-1][0]

    def take(self, longest: int, count: int) -> list[Row]:
        """Up to `count` texts, longest first, none longer than `longest` tokens.

        Texts of less than half of that are left, as they would be mostly padding.
        """
        end = bisect.bisect_right(self.texts, (longest, len(self.encoded.texts)))
        begin = max(end - count, bisect.bisect_left(self.texts, ((longest + 1) // 2, 0)))
        if begin >= end:
            return []
        taken = self.texts[begin:end]
        del self.texts[begin:end]
        return [(self.encoded, i) for _, i in reversed(taken)]


class MicroBatches:
    """The texts of all waiting requests, handed out a micro-batch at a time.

    Requests lead in turn. The leader fills the micro-batch with its longest texts; if there is
    space left, texts of other requests that are about as long are added. So a query waits for one
    micro-batch of each request before it, however many texts those have, and queries that arrive
    together are computed together.

    Args:
        max_tokens: of a micro-batch, including padding. A longer text is computed alone.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._waiting: deque[_Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, encoded: EncodedTexts) -> None:
        """Add a request. It leads after those that were there before."""
        self._waiting.append(_Waiting(encoded))

    def remove(self, request_id: str) -> None:
        """Drop the texts of a request that are not done. Unknown ids are ignored."""
        self._waiting = deque(w for w in self._waiting if w.encoded.request_id != request_id)

    def next(self) -> list[Row]:
        """The texts of the next micro-batch, longest first. There must be a request."""
        leader = self._waiting[0]
        longest = leader.longest
        most = max(1, self._max_tokens // longest)
        rows: list[Row] = []
        for waiting in self._waiting:
            rows += waiting.take(longest, most - len(rows))
            if len(rows) == most:
                break
        self._waiting.rotate(-1)
        self._waiting = deque(w for w in self._waiting if w.texts)
        return rows
