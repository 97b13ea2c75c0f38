"""What goes on with an answer or a load, in the words of the status line."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from ..record import phrases
from .console import short

if TYPE_CHECKING:
    from ..backend import BaseBackend, RequestStatus
    from ..models import Progress

STAGES = {
    "download": "downloading",
    "import": "converting",
    "verify": "checking",
    "load": "loading",
    "prefill": "reading the prompt",
}
WINDOW = 3.0  # seconds over which a speed is measured


class Facts(Protocol):
    """What a status line shows."""

    def update(self, progress: Progress) -> None:
        """Something goes on; from any thread."""

    def look(self) -> str:
        """The words now. It may ask the backend."""


class AnswerFacts:
    """Of an answer.

    Args:
        backend: that answers.
        model: that is asked.

    Attributes:
        request_id: of the answer; "" until it is known.
    """

    def __init__(self, backend: BaseBackend, model: str) -> None:
        self._backend = backend
        self._model = model
        self.request_id = ""
        self._progress: Progress | None = None
        self._counts: deque[tuple[float, int]] = deque()  # tokens, by the monotonic clock

    def update(self, progress: Progress) -> None:
        """See `Facts.update`."""
        self._progress = None if progress.over else progress

    def look(self) -> str:
        """See `Facts.look`."""
        status = self._backend.status(self.request_id) if self.request_id else None
        speed = self._speed(status)
        if self._progress is not None and (status is None or not status.tokens):
            return _stage(self._progress, self._model)
        if status is None:
            return short(self._model)
        if status.state != "running" or not status.tokens:
            wait = "" if status.expected_wait is None else phrases.about(status.expected_wait)
            # Folders are long; the last part of each is enough.
            words = " ".join(short(word) for word in status.words.split(" "))
            return ", ".join(filter(None, (words, wait, _resumed(status))))
        tokens = phrases.counted(status.tokens, "token")
        found = ", ".join(filter(None, (speed, tokens, _resumed(status))))
        return f"{short(status.model)}: {found}"

    def _speed(self, status: RequestStatus | None) -> str:
        """Tokens per second over the last seconds, or ""."""
        if status is None or status.state != "running":
            self._counts.clear()
            return ""
        now = time.monotonic()
        self._counts.append((now, status.tokens))
        while now - self._counts[0][0] > WINDOW:
            self._counts.popleft()
        begin, before = self._counts[0]
        return phrases.rate(status.tokens - before, now - begin)


class LoadFacts:
    """Of a load.

    Args:
        backend: that loads.
        model: that is loaded.
    """

    def __init__(self, backend: BaseBackend, model: str) -> None:
        self._backend = backend
        self._model = model
        self._progress: Progress | None = None

    def update(self, progress: Progress) -> None:
        """See `Facts.update`."""
        self._progress = None if progress.over else progress

    def look(self) -> str:
        """See `Facts.look`."""
        if self._progress is not None:
            return _stage(self._progress, self._model)
        # A load that has begun makes progress; until then it waits for what runs.
        busy = [short(model.name) for model in self._backend.models() if model.active]
        if busy:
            return f"{short(self._model)} waits to be loaded behind {phrases.listing(busy)}"
        return f"starting {short(self._model)}"


def _stage(progress: Progress, model: str) -> str:
    share = f", {progress.done / progress.total:.0%}" if progress.total else ""
    amount = ""
    if progress.stage not in ("prefill", "embed"):
        amount = f", {phrases.size(progress.done)}"
        amount += f" of {phrases.size(progress.total)}" if progress.total else ""
    return f"{STAGES.get(progress.stage, progress.stage)} {short(model)}{share}{amount}"


def _resumed(status: RequestStatus) -> str:
    return "resumed after a crash" if status.resumed else ""
