"""The scene of the demo: two requests, the second one sent during the first answer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...errors import GuardedLLMError
from ...results import Chunk, Collector, Result
from ..interrupt import on_interrupt
from .boards import Board

if TYPE_CHECKING:
    from ...backend import BaseBackend, Stream

Item = tuple["Part", Chunk | GuardedLLMError | None]  # None: nothing more comes
_TICK = 0.1  # seconds between looks at the record


@dataclass
class Part:
    """One request of the demo and what came of it."""

    label: str
    model: str
    prompt: str
    max_tokens: int
    collector: Collector = field(default_factory=Collector)
    result: Result | None = None
    error: GuardedLLMError | None = None

    @property
    def request_id(self) -> str:
        return f"request-{self.label}"


def play(backend: BaseBackend, parts: Sequence[Part], board: Board, *, after: int) -> bool:
    """Send the first request, the second one after `after` tokens, and wait for both.

    Returns:
        Whether Ctrl-C ended it early.
    """
    inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
    first, second = parts
    asked = False
    shown = 0

    def stop() -> None:
        for part in parts:
            backend.cancel(part.request_id)

    with on_interrupt(stop) as interrupt:
        running = {first.label}
        _send(backend, first, inbox)
        while running:
            _take(inbox, running, board)
            # A short answer may end before `after` tokens.
            due = len(first.collector.chunks) >= after or first.label not in running
            if due and not asked and not interrupt.pressed:
                asked = True
                running.add(second.label)
                _send(backend, second, inbox)
            events = backend.events()
            board.tell(events[shown:])
            shown = len(events)
        return interrupt.pressed


def _send(backend: BaseBackend, part: Part, inbox: queue.SimpleQueue[Item]) -> None:
    stream = backend.stream(
        part.model, part.prompt, max_tokens=part.max_tokens, request_id=part.request_id
    )
    threading.Thread(target=_read, args=(part, stream, inbox), daemon=True).start()


def _read(part: Part, stream: Stream, inbox: queue.SimpleQueue[Item]) -> None:
    try:
        for chunk in stream:
            inbox.put((part, chunk))
    except GuardedLLMError as error:
        inbox.put((part, error))
    inbox.put((part, None))


def _take(inbox: queue.SimpleQueue[Item], running: set[str], board: Board) -> None:
    """Take the next item, if one comes in time, and show it."""
    try:
        part, item = inbox.get(timeout=_TICK)
    except queue.Empty:
        return
    if item is None:
        running.discard(part.label)
    elif isinstance(item, GuardedLLMError):
        part.error = item
    else:
        part.collector.add(item)
        board.add(part.label, item.reasoning + item.text)
        if item.finish_reason is not None:
            part.result = part.collector.result()
