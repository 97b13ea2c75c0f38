"""Which texts are embedded together: short steps, little padding, nobody waits long."""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(eq=False)
class EmbedJob:
    """The texts of one request.

    Attributes:
        texts: token ids of each.
        vectors: one for each text that is done, by its index.
        cancelled: while its texts are still being encoded.
    """

    request_id: str
    texts: list[npt.NDArray[np.int32]] = field(default_factory=list)
    vectors: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    cancelled: bool = False

    @property
    def tokens(self) -> int:
        """Of all its texts."""
        return sum(map(len, self.texts))

    @property
    def longest(self) -> int:
        """Tokens of its longest text."""
        return max(map(len, self.texts))


Row = tuple[EmbedJob, int]  # a text, as its job and index


class _Waiting:
    """A job and those of its texts that are not done: (tokens, index), shortest first."""

    def __init__(self, job: EmbedJob) -> None:
        self.job = job
        self.texts = sorted((len(text), i) for i, text in enumerate(job.texts))

    @property
    def longest(self) -> int:
        return self.texts[-1][0]

    def take(self, longest: int, count: int) -> list[Row]:
        """At most `count` texts, longest first, of `longest` tokens or a little less.

        A text of less than half as many tokens would be mostly padding.
        """
        end = bisect.bisect_right(self.texts, (longest, len(self.job.texts)))
        begin = max(end - count, bisect.bisect_left(self.texts, ((longest + 1) // 2, 0)))
        if begin >= end:
            return []
        taken = self.texts[begin:end]
        del self.texts[begin:end]
        return [(self.job, i) for _, i in reversed(taken)]


class MicroBatches:
    """The texts of all waiting jobs, handed out a micro-batch at a time.

    Jobs lead in turn. A leader fills the micro-batch with its longest texts, and texts
    of other jobs that are about as long ride along in what room is left. So a query
    waits for one micro-batch of each job before it, however many texts those have, and
    queries that come together are computed together.

    Args:
        max_tokens: of a micro-batch, padding included. A longer text goes alone.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._waiting: deque[_Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: EmbedJob) -> None:
        """Let a job join; it leads when those before it have."""
        self._waiting.append(_Waiting(job))

    def remove(self, request_id: str) -> None:
        """Forget a job's texts that are not done. Unknown ones are ignored."""
        self._waiting = deque(w for w in self._waiting if w.job.request_id != request_id)

    def next(self) -> list[Row]:
        """The texts of the next micro-batch, longest first; there is at least one job."""
        leader = self._waiting[0]
        longest = leader.longest
        room = max(1, self._max_tokens // longest)
        rows: list[Row] = []
        for waiting in self._waiting:
            rows += waiting.take(longest, room - len(rows))
            if len(rows) == room:
                break
        self._waiting.rotate(-1)
        self._waiting = deque(w for w in self._waiting if w.texts)
        return rows
