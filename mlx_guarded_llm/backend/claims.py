"""What a backend has claimed of the memory that it shares with other programs.

Before the guard hears of a request or a load, the memory that it may take is claimed; then nobody
else takes it. Claims are made on another thread (`programs`), so this one never waits: what was to
be done goes on when the answer comes. Most requests find enough claimed already.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial

from ..holder import Holder
from ..logs import get_logger
from .programs import Answer, Claim, Programs

Call = Callable[[], None]
Wanted = Callable[[], Claim]

ANSWER = 15.0  # seconds for an answer; then the backend goes on as if it were alone
AGAIN = 1.0  # seconds until memory that others hold is asked for again
LULL = 0.25  # seconds between two claims that nobody waits for

logger = get_logger("backend")
_owners = itertools.count(1)


class Claims:
    """Used by the dispatcher's thread only.

    What is to run later must not raise.

    Args:
        programs: where claims are entered; None counts nobody else.
        post: has something run on the dispatcher's thread.
        changed: called when others hold more or less than before.

    Attributes:
        others: the programs that hold memory of the same device, as far as is known.
        budget: bytes that all programs together may hold there.
    """

    def __init__(
        self, programs: Programs | None, post: Callable[[Call], None], changed: Call
    ) -> None:
        self.others: tuple[Holder, ...] = ()
        self._programs = programs
        self._post = post
        self._changed = changed
        self._owner = next(_owners)
        self.budget = 0
        self._wanted: Wanted | None = None
        self._waiting: list[Call] = []  # until the next answer that was asked for after them
        self._served: list[Call] = []  # until the answer to the claim that is under way
        self._sent: Claim | None = None  # the latest
        self._sent_at = 0.0
        self._granted = 0  # bytes
        self._number = 0  # of the latest claim
        self._under_way = False
        self._next: float | None = None

    def begin(self, wanted: Wanted, then: Call) -> None:
        """An engine works for the first time. `then` runs when it is known what others hold.

        Args:
            wanted: tells what all that is in memory or wanted takes.
        """
        if self._programs is None:
            then()
            return
        self._wanted = wanted
        self._waiting.append(then)
        self._send(wanted())

    def after(self, then: Call) -> None:
        """Run `then` when as much of what is wanted now is claimed as others leave."""
        if self._programs is None or self._wanted is None:
            then()
            return
        claim = self._wanted()
        if not self._under_way and claim.bytes <= self._granted:
            then()
            return
        self._waiting.append(then)
        self._send(claim)

    def look(self) -> None:
        """Somebody asks for `others`: what he learns next time is no older than `AGAIN`."""
        if self._wanted is not None and time.monotonic() >= self._sent_at + AGAIN:
            self._send(self._wanted())

    def close(self) -> None:
        """The backend holds nothing any more."""
        if self._programs is not None:
            self._programs.release(self._owner)
        self._programs, self._next = None, None

    # ---- time --------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` is due."""
        return self._next

    def tick(self, now: float) -> None:
        """Claim what is wanted by now, and give back what is not."""
        self._next = None
        if self._programs is None or self._wanted is None or self._sent is None:
            return
        if self._under_way:
            self._next = self._sent_at + ANSWER
            if now >= self._next:
                logger.warning("nobody says what other programs hold in memory; it goes on alone")
                self._answered(self._number, None)
            return
        claim = self._wanted()
        due = self._due(claim, self._sent)
        if due is not None and now >= due:
            self._send(claim)
        else:
            self._next = due

    def _due(self, claim: Claim, sent: Claim) -> float | None:
        """When to ask for this, if the latest that was asked for is `sent`."""
        short = self._granted < sent.bytes
        if claim == sent:
            return self._sent_at + AGAIN if short else None
        if claim.bytes < sent.bytes if short else claim.bytes > self._granted:
            return self._sent_at
        fewer = claim.bytes < sent.bytes and claim.models.keys() != sent.models.keys()
        return self._sent_at if fewer else self._sent_at + LULL

    # ---- a claim and its answer ----------------------------------------------------

    def _send(self, claim: Claim) -> None:
        if self._under_way or self._programs is None:
            return
        self._served, self._waiting = self._waiting, []
        self._number += 1
        self._sent, self._sent_at, self._under_way = claim, time.monotonic(), True
        self._granted = min(self._granted, claim.bytes)
        self._next = self._sent_at + ANSWER
        number, post = self._number, self._post

        def tell(answer: Answer | None) -> None:
            post(partial(self._answered, number, answer))

        if not self._programs.claim(self._owner, claim, self.budget, tell):
            tell(None)

    def _answered(self, number: int, answer: Answer | None) -> None:
        if number != self._number or not self._under_way or self._sent is None:
            return  # another answer came, or none in time
        if self._programs is None:
            return  # it is closed
        self._under_way = False
        self._granted = self._sent.bytes if answer is None else answer.granted
        others = () if answer is None else answer.others
        if others != self.others:
            self.others = others
            self._changed()
        served, self._served = self._served, []
        for then in served:
            then()
        if self._waiting and self._wanted is not None:
            self._send(self._wanted())
