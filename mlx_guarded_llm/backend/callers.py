"""Everybody who waits for a backend: who they are, and telling them."""

from __future__ import annotations

import copy
import logging

from ..engine.protocol import Delta
from ..errors import GuardedLLMError
from ..models import OnProgress, Progress
from ..results import Chunk
from .calls import Put
from .work import Job, Request

logger = logging.getLogger("mlx_guarded_llm.backend")


class Callers:
    """Requests and jobs by id. Used by the dispatcher's thread, but for `pass_on`.

    Args:
        on_progress: told of everybody's progress.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self.requests: dict[str, Request] = {}
        self.jobs: dict[str, Job] = {}
        self._puts: dict[str, Put] = {}
        self._on_progress = on_progress

    def add(self, request: Request) -> None:
        """A request has somebody waiting for it from now on."""
        self.requests[request.id] = request
        self._puts[request.id] = request.put

    def pass_on(self, delta: Delta) -> None:
        """Give a piece of an answer to its caller. From any thread."""
        put = self._puts.get(delta.request_id)
        if put is not None:
            put(delta.chunk)

    def end_all(self, error: GuardedLLMError) -> None:
        """Everybody gets this error."""
        for request in list(self.requests.values()):
            self.settle(request, error)
        self.requests.clear()
        for job in list(self.jobs.values()):
            job.fail(error)
        self.jobs.clear()

    def settle(self, request: Request, error: GuardedLLMError | None) -> None:
        """The caller gets its end; the engine may still have to stop."""
        if not request.in_engine:
            self.requests.pop(request.id, None)
        self.tell(request, error or request.cancelled())

    def tell(self, request: Request, item: Chunk | GuardedLLMError) -> None:
        """Give the caller its end, once."""
        self._puts.pop(request.id, None)
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
        """Tell how far a load (of model `key`) or a prefill (of a request) has come."""
        listeners: list[OnProgress | None] = [self._on_progress]
        if request_id is not None:
            request = self.requests.get(request_id)
            listeners.append(request.on_progress if request else None)
        else:
            listeners += [r.on_progress for r in self.requests.values() if r.key == key]
            listeners += [j.on_progress for j in self.jobs.values() if j.key == key]
        for listener in listeners:
            if listener is not None:
                try:
                    listener(progress)
                except Exception:
                    logger.exception("a progress callback failed")
