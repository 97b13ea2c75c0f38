"""What a backend has under way: requests and jobs, and how much of it there may be."""

from __future__ import annotations

from collections.abc import Iterator

from ..embed_request import MAX_CHARACTERS
from ..engine.protocol import Delta
from ..errors import GuardedLLMError, InvalidRequest, QueueFull
from ..models import OnProgress
from ..record.events import is_attempt
from .jobs import Job
from .requests import Request


class Pending:
    """Requests and jobs by id. Used by the dispatcher's thread only, but for what says otherwise.

    Args:
        limit: requests that may be under way.

    Attributes:
        requests: by the callers' ids.
        by_engine_id: the same requests, by their ids in the engine.
        jobs: by id.
    """

    def __init__(self, limit: int) -> None:
        self.requests: dict[str, Request] = {}
        self.by_engine_id: dict[str, Request] = {}
        self.jobs: dict[str, Job] = {}
        self._limit = limit
        self._characters = 0  # of all requests

    def refusal(self, request: Request) -> GuardedLLMError | None:
        """Why a request cannot be taken now, or None."""
        if request.id in self.requests:
            return in_use(request.id)
        if len(self.requests) >= self._limit:
            return QueueFull(
                f"{len(self.requests)} requests are under way already.",
                hint="Try again later, or raise max_queue.",
            )
        characters, held = request.characters, self._characters
        if characters > MAX_CHARACTERS:
            return InvalidRequest(
                f"the request has {characters} characters; {MAX_CHARACTERS} are the most."
            )
        if held + characters > MAX_CHARACTERS:
            return QueueFull(
                f"requests of {held} characters are under way already; "
                f"{MAX_CHARACTERS} are the most.",
                hint="Try again later, or send less at once.",
            )
        return None

    def find(self, name: str) -> Request | None:
        """The request of this id, or the attempt that is made for it now."""
        attempts = (r for r in self.requests if is_attempt(r, name))
        return self.requests.get(name) or self.requests.get(next(attempts, ""))

    def add(self, request: Request) -> None:
        """A request is under way from now on."""
        self.requests[request.id] = request
        self.by_engine_id[request.engine_id] = request
        self._characters += request.characters

    def remove(self, request: Request) -> None:
        """Nothing more will be heard of a request: its id is free."""
        if self.requests.pop(request.id, None) is not None:
            self._characters -= request.characters
        self.by_engine_id.pop(request.engine_id, None)

    def pass_on(self, delta: Delta) -> None:
        """Give a chunk of an answer to its caller. From any thread, one at a time."""
        request = self.by_engine_id.get(delta.request_id)
        put = request.put if request is not None else None
        if request is not None and put is not None:
            request.tokens += delta.chunk.tokens
            put(delta.chunk)

    def fingerprint(self, name: str) -> str:
        """Of the model of a request that is under way, or "". From any thread."""
        request = self.requests.get(name)
        return request.files.fingerprint if request is not None and request.files else ""

    def listeners(self, key: str) -> Iterator[OnProgress | None]:
        """Of every request and job for a model."""
        for request in self.requests.values():
            if request.key == key:
                yield request.on_progress
        for job in self.jobs.values():
            if job.key == key:
                yield job.on_progress


def in_use(request_id: str) -> InvalidRequest:
    """The error of a request whose name another one has."""
    return InvalidRequest(
        f"a request {request_id!r} is already under way.",
        hint="Give each request a name of its own, or none.",
    )
