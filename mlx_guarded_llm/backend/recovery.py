"""What becomes of requests and jobs when the engine dies, or runs out of memory.

Nothing of an engine outlives it but what the parent knows: the requests, and the tokens
that it has passed on. That is enough: a request goes on behind those in the next engine.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ..engine.protocol import Ended, JobEnded
from ..errors import EngineDied, GuardedLLMError, MemoryRefused
from ..worker.death import Death
from ..worker.last_words import last_words
from .requests import Request

if TYPE_CHECKING:
    from .dispatcher import Dispatcher

GIB = 1024**3


class Recovery:
    """The dispatcher's part for that. Used by its thread only."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._tried_again: set[str] = set()  # loads that ran out of memory once

    # ---- death -------------------------------------------------------------------

    def died(self, death: Death) -> None:
        """The engine's process is gone. All that it had waits for the next one."""
        to = self._dispatcher
        to.note(
            "engine.died",
            model=death.model or None,
            cause=death.text,
            pid=death.pid,
            code=death.code,
            how=death.cause,
            work=death.work,
            lived=death.lived,
            stderr=last_words(death.stderr),
        )
        now = time.monotonic()  # what follows from the death comes after it in the record
        to.crashes.add(death)
        wait = to.machine.died(now)
        to.callers.loaded()
        unguarded = self._lose_all()
        if to.guard is not None:
            emitted = {r.id: len(r.tokens) for r in to.callers.requests.values() if r.tokens}
            to.do(to.guard.lost(now, death.text, emitted=emitted))
        self._blame(death, now)
        if wait is None:
            to.give_up(_gave_up(death))
            return
        for request in unguarded:
            if not request.told:
                to.until_ready(request)

    def back(self) -> None:
        """A new engine works: it is told of everything, and goes on."""
        to = self._dispatcher
        assert to.guard is not None
        requests = [r for r in to.callers.requests.values() if r.guarded]
        for request in sorted(requests, key=lambda r: not r.resumed):
            to.prepare(request)
        to.do(to.guard.back(time.monotonic()))

    def _lose_all(self) -> list[Request]:
        """Every request is out of the engine. Returns those that the guard has not seen."""
        callers = self._dispatcher.callers
        lost = [request for request in callers.requests.values() if request.in_engine]
        for request in lost:
            request.lose()
            if request.told and not request.guarded:
                callers.remove(request)
        return [request for request in lost if not request.guarded]

    def _blame(self, death: Death, now: float) -> None:
        """A model that was at work when the engine died may have had enough chances."""
        to, key = self._dispatcher, death.model
        if to.quarantine.blame(now, key, death):
            error = to.quarantine.error(key)
            assert error is not None
            to.note("model.quarantined", model=key, cause=error.message)
            self._refuse(key, error, now)
        elif (refusal := self.refusal(key)) is not None:
            self._refuse(key, refusal, now)

    def refusal(self, key: str) -> GuardedLLMError | None:
        """Why a model is not loaded after what it did, or None."""
        quarantine = self._dispatcher.quarantine
        if quarantine.refuses(time.monotonic(), key):
            return self._no_memory(key, None, "the kernel ended its process")
        return quarantine.error(key)

    def _refuse(self, key: str, error: GuardedLLMError, now: float) -> None:
        """Tell everybody who wants a model that there is none to be had."""
        to = self._dispatcher
        for request in list(to.callers.requests.values()):
            if request.key == key:
                to.cancel(request.id, error)
        if to.guard is not None:
            to.do(to.guard.refuse(now, key, error))

    # ---- memory ------------------------------------------------------------------

    def out_of_memory(self, request: Request, ended: Ended) -> Ended | None:
        """The batch of a request ran out of memory.

        The first time all idle models leave and the request goes on.

        Returns:
            Its end, or None when it goes on.
        """
        to, cause = self._dispatcher, "out of memory"
        if request.told or request.stopping or not request.active:
            return ended
        if request.squeezed or to.guard is None:
            tokens = request.prompt_tokens + len(request.tokens)
            error = self._no_memory(request.key, tokens, str(ended.error))
            return replace(ended, error=error)
        now = time.monotonic()
        request.squeezed = True
        to.do(to.guard.squeeze(now, cause))
        request.lose()
        emitted = len(request.tokens)
        actions = to.guard.interrupted(now, request.id, cause, emitted=emitted)
        to.prepare(request)
        to.do(actions)
        return None

    def load_again(self, ended: JobEnded) -> bool:
        """Whether a load that ran out of memory is tried again, once, without idle models."""
        to = self._dispatcher
        again = ended.out_of_memory and ended.job_id not in self._tried_again
        if again and to.guard is not None and to.guard.idle():
            self._tried_again.add(ended.job_id)
            to.do(to.guard.squeeze(time.monotonic(), "out of memory"))
            return True
        self._tried_again.discard(ended.job_id)
        return False

    def _no_memory(self, key: str, tokens: int | None, cause: str) -> MemoryRefused:
        ledger = self._dispatcher.ledger
        needed = ledger.needed_bytes(key, tokens) if ledger is not None else 0
        budget = ledger.budget_bytes if ledger is not None else 0
        return MemoryRefused(
            f"{key} ran out of memory twice, the second time without any idle model beside it "
            f"({cause}); it was expected to take {needed / GIB:.2f} GiB of {budget / GIB:.2f}.",
            needed_bytes=needed,
            budget_bytes=budget,
            hint="Lower memory_budget, max_tokens or max_active, or take a smaller model.",
        )


def _gave_up(death: Death) -> EngineDied:
    text = f"the engine died again and again, the last time like this: {death.text}."
    words = last_words(death.stderr)
    if words:
        text += f" The end of its stderr: {words}"
    return EngineDied(text, hint="`mlx-guarded doctor` may tell more; then ask again.")
