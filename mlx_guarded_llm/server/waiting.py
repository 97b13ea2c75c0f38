"""What a request waits for, in words, for whoever holds the line."""

from __future__ import annotations

import time

from ..backend import ServableBackend
from ..errors import GuardedLLMError
from ..models import Progress
from ..record import phrases
from ..record.reason import RECENT, reason
from ..results import Usage

PATIENCE = 1.0  # seconds for the thread that decides everything to answer

_STAGES = {
    "download": "fetching",
    "import": "importing",
    "verify": "checking",
    "load": "loading",
    "prefill": "reading the prompt for",
    "embed": "embedding with",
}


class Waiting:
    """The reason that a heartbeat tells.

    Args:
        backend: that is asked.
        request_id: whose.
        model: that it asks.
    """

    def __init__(self, backend: ServableBackend, request_id: str, model: str) -> None:
        self._backend = backend
        self._request_id = request_id
        self._model = model
        self._progress: Progress | None = None
        self._starts: float | None = None  # when it is expected to, by the monotonic clock

    def note(self, progress: Progress) -> None:
        """Something goes on with it."""
        self._progress = None if progress.over else progress

    async def look(self) -> None:
        """Ask the backend when it will start."""
        left = None
        try:
            if self._progress is None or not self._progress.request_id:
                left = await self._backend.aexpected_wait(self._request_id, timeout=PATIENCE)
        except GuardedLLMError:  # nothing decides any more
            pass
        self._starts = None if left is None else time.monotonic() + left

    @property
    def left(self) -> float | None:
        """Seconds until it starts; None if that is unknown, or it has started."""
        return None if self._starts is None else max(self._starts - time.monotonic(), 0.0)

    def counted(self) -> Usage:
        """The tokens of its prompt, as far as they are counted by now."""
        prompt = cached = 0
        for event in self._backend.record.latest_first(RECENT):
            if event.request_id != self._request_id:
                continue
            cached = event.details.get("cached_tokens", cached)
            if event.kind == "request.queued":
                prompt = event.details.get("prompt_tokens", 0)
                break
        return Usage(prompt, 0, min(cached, prompt))

    def words(self) -> str:
        """The reason, as far as it is known."""
        said, waits = self._reason()
        left = self.left if waits else None
        return said if left is None else f"{said}, {phrases.about(left)}"

    def _reason(self) -> tuple[str, bool]:
        """What is told, and whether it has still to start."""
        progress = self._progress
        if progress is None:
            latest = self._backend.record.latest_first(RECENT)
            return reason(latest, self._request_id, self._model)
        share = f", {progress.done / progress.total:.0%}" if progress.total else ""
        said = f"{_STAGES.get(progress.stage, progress.stage)} {progress.model}{share}"
        return said, progress.request_id == ""
