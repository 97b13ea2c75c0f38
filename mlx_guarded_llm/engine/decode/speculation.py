"""Speculative decoding of a request that is alone: when to draft, and how many tokens.

A model takes little longer for a few tokens than for one. So a draft proposes the next ones, and
the model computes them all in one pass. It keeps those that it would have chosen itself: the
likeliest, or the ones that its seed gives at these positions. The answer is that of the model
alone, whatever the draft proposes; only the time differs.

`Speculation` decides before each step, `drafts` proposes, and `batch` verifies. While a second
request is decoded there are no drafts: a batch already uses the pass for several tokens.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median_low
from typing import Protocol

import mlx.core as mx

from ...models.spec import MOST_DRAFTED
from .decoder import BESIDE, TokenSequence
from .drafts import Draft
from .sampling import Row

# How many tokens are drafted. They are few numbers, as a GPU compiles kernels for each.
LENGTHS = tuple(1 << i for i in range(MOST_DRAFTED.bit_length()))
_SAMPLES = 8  # measurements of a step whose median counts
_ENOUGH = 2  # measurements with which a number of tokens counts as known
_PLAIN = 3  # plain steps that are measured before the first draft, and again now and then
_AGAIN = 128  # drafted steps after which plain ones and longer drafts are measured again
_FADE = 0.96  # the weight of what was accepted before, for each token that was judged since
_HOPE = 0.75  # the share that is accepted, before anything is known of a draft
_LEARNT = 0.3  # how much of what is expected of the next answer comes from the last
_LITTLE = 2.0  # judged tokens that such a share counts for, at the beginning and after a pause
_LOST = 0.05  # the share of the time that drafts may cost which do not pay
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 128  # steps without drafts after which one is tried


class Stream(Protocol):
    """The only row of a batch, between two steps."""

    @property
    def history(self) -> list[int]:
        """The tokens that its caches hold."""

    @property
    def row(self) -> Row:
        """Its sampling state."""

    @property
    def left(self) -> int:
        """How many tokens it may have after the pending one."""

    def pending(self) -> mx.array | None:
        """(1,) the token after its history, once it is computed; None if it is the last one."""


@dataclass(eq=False)
class Pace:
    """How many tokens to draft: as many as give the most tokens per second.

    It knows what a step took with each number of drafted tokens, and which share of them the
    model has accepted lately. If no number pays, it drafts none, and tries again after a pause,
    which doubles each time. An answer begins with the share that is usual.
    """

    _took: dict[int, deque[float]] = field(default_factory=dict)  # seconds, by length; 0 is plain
    _warm: set[int] = field(default_factory=set)  # lengths whose kernels are compiled
    _usual: float = _HOPE
    _accepted: float = _HOPE * _LITTLE
    _judged: float = _LITTLE
    _wanted: int = _PLAIN  # plain steps to measure before the next draft
    _drafts: int = 0  # since plain steps were measured
    _pause: int = _FIRST_PAUSE
    _rest: int = 0  # steps of the pause that are left
    _unpaid: float = 0.0  # seconds in which the draft read what it had missed
    _debt: int = 0  # steps until what was lost is a small share of the time

    def begin(self) -> None:
        """Another answer begins."""
        self._usual += _LEARNT * (self._accepted / self._judged - self._usual)
        self._expect(self._usual)
        self._pause, self._rest = max(self._pause // 2, _FIRST_PAUSE), 0

    def length(self) -> int:
        """How many tokens to draft in the next step; 0 for none."""
        if self._wanted > 0:
            return 0
        waits = self._rest > 0 or self._debt > 0
        self._rest, self._debt = max(self._rest - 1, 0), max(self._debt - 1, 0)
        return 0 if waits else self._best()

    def read(self, seconds: float) -> None:
        """The draft took so long to read tokens that it had missed."""
        self._unpaid += seconds

    def took(self, length: int, seconds: float) -> None:
        """A step took so long, with so many drafted tokens."""
        if length == 0:
            self._wanted = max(self._wanted - 1, 0)
        if length == 0 or length in self._warm:
            self._took.setdefault(length, deque(maxlen=_SAMPLES)).append(seconds)
        if length > 0 and length in self._warm:
            plain = median_low(self._took[0])
            if self._rest > 0:  # it did not pay
                lost = self._unpaid + max(seconds - plain, 0.0)
                self._debt = int(lost / (_LOST * plain))
            self._unpaid = 0.0
        self._warm.add(length)

    def judged(self, length: int, accepted: int) -> None:
        """The model chose so many of the drafted tokens itself."""
        judged = min(accepted + 1, length)
        fade = _FADE**judged
        self._accepted = self._accepted * fade + accepted
        self._judged = self._judged * fade + judged
        best = self._best()
        if self._gain(best) > 1.0:
            self._pause = _FIRST_PAUSE
        else:
            self._rest, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            # After the pause the text may be another.
            self._expect(self._accepted / self._judged)
        self._drafts += 1
        if self._drafts == _AGAIN:
            self._drafts, self._wanted = 0, _PLAIN
            self._took = {n: seconds for n, seconds in self._took.items() if n <= best}

    def _expect(self, share: float) -> None:
        self._accepted, self._judged = share * _LITTLE, _LITTLE

    def _best(self) -> int:
        known = [n for n in LENGTHS if len(self._took.get(n, ())) >= _ENOUGH]
        return max(LENGTHS[: len(known) + 1], key=self._gain)

    def _gain(self, length: int) -> float:
        """Tokens per second when drafting so many, as a multiple of those without drafts."""
        share = self._accepted / self._judged
        tokens = sum(share**i for i in range(length + 1))
        # A length that is not known yet is tried: as if it took no more than the one before.
        nearest = max(n for n in self._took if n <= length)
        return tokens * median_low(self._took[0]) / median_low(self._took[nearest])


class Speculation:
    """Drafts tokens for the one request that a model answers.

    Args:
        draft: proposes them.
        limit: the longest context in tokens up to which tokens may be drafted.
        chunk: tokens that the draft may compute before a step.
        clock: seconds.
    """

    def __init__(
        self,
        draft: Draft,
        *,
        limit: int,
        chunk: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._draft = draft
        self._limit = limit
        self._chunk = chunk
        self._clock = clock
        self._pace = Pace()
        self._sequence: TokenSequence | None = None
        self._length = 0  # tokens that were drafted for the step under way
        self._began = 0.0  # when that step began
        self._plain = 0  # plain steps in a row

    def draft(self, stream: Stream, sequence: TokenSequence, *, beside: bool) -> mx.array | None:
        """(tokens,) to verify in the next step; None for a plain step.

        Args:
            stream: the only row of the batch.
            sequence: its request.
            beside: see `Decoder.step`.
        """
        if sequence.constraint is not None:  # its grammar needs each token before the next
            return None
        if sequence is not self._sequence:
            self._begin(sequence, stream.history)
        # The first plain step only starts a pass, and the next one waits for it.
        if (self._length or self._plain > 1) and not beside:
            self._pace.took(self._length, self._clock() - self._began)
        self._length, self._began = 0, self._clock()
        drafted = self._proposed(stream, beside)
        if drafted is None:
            self._plain += 1
        else:
            self._length, self._plain = len(drafted), 0
        return drafted

    def rest(self) -> None:
        """The next step is a plain one, as the request is not alone."""
        self._length = self._plain = 0

    def verified(self, tokens: int) -> None:
        """The drafted tokens were verified; so many tokens are new in the stream's history."""
        assert self._sequence is not None
        accepted = tokens - 1
        self._draft.settle(accepted)
        self._pace.judged(self._length, accepted)
        self._sequence.drafted += self._length
        self._sequence.accepted += accepted

    def end(self, sequence: TokenSequence) -> None:
        """A request left the batch, finished or not."""
        if sequence is self._sequence:
            self._draft.end()
            self._sequence = None

    def _begin(self, sequence: TokenSequence, history: list[int]) -> None:
        if self._sequence is not None:
            self._draft.end()
        self._sequence = sequence
        self.rest()
        self._pace.begin()
        self._draft.begin(history)

    def _proposed(self, stream: Stream, beside: bool) -> mx.array | None:
        room = min(stream.left, self._limit - len(stream.history) - 1)
        length = self._pace.length() if room > 0 else 0
        chunk = self._chunk // BESIDE if beside else self._chunk
        if not length:
            return None
        began = self._clock()
        ready = self._draft.ready(chunk)
        self._pace.read(self._clock() - began)
        if not ready:
            return None
        pending = stream.pending()
        if pending is None:
            return None
        self._began = self._clock()  # what the pending token took is not part of this step
        drafted = self._draft.propose(pending, stream.row, _rounded(min(length, room)))
        return None if drafted is None else drafted[: _rounded(len(drafted))]


def _rounded(tokens: int) -> int:
    """The largest of `LENGTHS` that is not above this number, which is 1 or more."""
    return max(length for length in LENGTHS if length <= tokens)
