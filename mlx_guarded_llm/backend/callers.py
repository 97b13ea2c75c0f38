"""Everybody who waits for a backend: who they are, and telling them."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

from ..engine.protocol import Delta
from ..errors import GuardedLLMError, InvalidRequest, QueueFull
from ..models import OnProgress, Progress
from ..texts import MAX_CHARACTERS
from .requests import Request
from .work import Job

logger = logging.getLogger("mlx_guarded_llm.backend")


class Callers:
    """Requests and jobs by id. Used by the dispatcher's thread, but for `pass_on`.

    Args:
        on_progress: told of everybody's progress.
        limit: requests that may be under way.
    """

    def __init__(self, on_progress: OnProgress | None, limit: int) -> None:
        self.requests: dict[str, Request] = {}
        self.tickets: dict[str, Request] = {}  # the same, by their names in the engine
        self.jobs: dict[str, Job] = {}
        # Stages under way and who hears of them, by model and request (or "").
        self._moving: dict[tuple[str, str], tuple[Progress, list[OnProgress | None]]] = {}
        self._on_progress = on_progress
        self._limit = limit

    def refusal(self, request: Request) -> GuardedLLMError | None:
        """Why a request cannot be taken now, or None."""
        if request.id in self.requests:
            return InvalidRequest(
                f"a request {request.id!r} is already under way.",
                hint="Give each request a name of its own, or none.",
            )
        if len(self.requests) >= self._limit:
            return QueueFull(
                f"{len(self.requests)} requests are under way already.",
                hint="Try again later, or raise max_queue.",
            )
        if request.characters:  # only then are the others gone through
            held = sum(other.characters for other in self.requests.values())
            if held + request.characters > MAX_CHARACTERS:
                return QueueFull(
                    f"texts of {held} characters are under way already; "
                    f"{MAX_CHARACTERS} are the most.",
                    hint="Try again later, or send fewer texts at once.",
                )
        return None

    def add(self, request: Request) -> None:
        """A request has somebody waiting for it from now on."""
        self.requests[request.id] = request
        self.tickets[request.ticket] = request

    def remove(self, request: Request) -> None:
        """Nothing more will be heard of it: its name is free."""
        self.requests.pop(request.id, None)
        self.tickets.pop(request.ticket, None)

    def pass_on(self, delta: Delta) -> None:
        """Give a piece of an answer to its caller. From any thread, one at a time."""
        request = self.tickets.get(delta.request_id)
        if request is not None and not request.told:
            request.tokens += delta.tokens
            request.put(delta.chunk)

    def end_all(self, error: GuardedLLMError) -> None:
        """Everybody gets this error."""
        for request in list(self.requests.values()):
            self.settle(request, error)
        self.requests.clear()
        self.tickets.clear()
        for job in list(self.jobs.values()):
            job.fail(error)
        self.jobs.clear()
        for subject in list(self._moving):
            self.stopped(*subject)

    def settle(self, request: Request, error: GuardedLLMError | None) -> None:
        """The caller gets its end; the engine may still have to stop."""
        if not request.in_engine:
            self.remove(request)
        self.tell(request, error or request.cancelled())

    def tell(self, request: Request, item: Any) -> None:
        """Give the caller its end, once."""
        self.stopped(request.key, request.id)
        if request.told:
            return
        request.told = True
        if isinstance(item, GuardedLLMError):
            item = copy.copy(item)  # raised by several callers, each adds its own traceback
        try:
            request.put(item)
        except Exception:
            logger.exception("the caller of %s cannot be told", request.id)

    def moved(self, key: str, request_id: str | None, progress: Progress) -> None:
        """Tell how far a fetch or load (of model `key`) or a prefill (of a ticket) has come."""
        listeners = [self._on_progress]
        if request_id is not None:
            request = self.tickets.get(request_id)
            if request is None or request.told:
                return
            request_id = request.id
            listeners.append(request.on_progress)
        else:
            listeners += [r.on_progress for r in self.requests.values() if r.key == key]
            listeners += [j.on_progress for j in self.jobs.values() if j.key == key]
        subject = (key, request_id or "")
        if subject in self._moving and self._moving[subject][0].stage != progress.stage:
            self.stopped(*subject)
        over = progress.done == progress.total
        progress = replace(progress, model=key, request_id=subject[1], over=over)
        if over:
            self._moving.pop(subject, None)
        else:
            self._moving[subject] = (progress, listeners)
        _notify(listeners, progress)

    def stopped(self, key: str, request_id: str = "") -> None:
        """What was under way goes no further, whether it is finished or not."""
        stage = self._moving.pop((key, request_id), None)
        if stage is not None:
            progress, listeners = stage
            _notify(listeners, replace(progress, over=True))

    def loaded(self) -> None:
        """As `stopped`, for the load: there is but one at a time."""
        for subject in [s for s, (progress, _) in self._moving.items() if progress.stage == "load"]:
            self.stopped(*subject)


def _notify(listeners: list[OnProgress | None], progress: Progress) -> None:
    for listener in listeners:
        if listener is not None:
            try:
                listener(progress)
            except Exception:
                logger.exception("a progress callback failed")
