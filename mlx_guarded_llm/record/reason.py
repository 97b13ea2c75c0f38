"""What a request does or waits for now, in words: the latest events that concern it say so."""

from __future__ import annotations

from collections.abc import Iterable

from .events import Event, is_attempt

RECENT = 5000  # events looked at; a busy server makes some hundred in a second


def reason(latest_first: Iterable[Event], request_id: str, model: str) -> tuple[str, bool]:
    """The words, and whether it has still to start.

    Args:
        latest_first: events.
        request_id: of a request, or of a call of `GuardedLLM`.
        model: that it asks.
    """
    for event in latest_first:
        mine = is_attempt(event.request_id or "", request_id)
        ours = event.model == model and event.kind.startswith("load.")
        if not (mine or ours):
            continue
        behind = _models(event)
        match event.kind:
            case "load.deferred" | "load.queued":
                return f"{event.model} waits to be loaded{behind}", True
            case "load.started":
                return f"loading {event.model}", True
            case "request.queued":
                return f"{model} is queued{behind}", True
            case "request.paused":
                return f"{model} stands still while another model loads", False
            case "request.interrupted":
                return f"{model} goes on in a new engine", True
            case "request.started" | "request.resumed":
                return f"{model} reads the prompt", False
            case "request.first_token":
                return f"{model} answers", False
    return f"waiting for {model}", True


def _models(event: Event) -> str:
    names = sorted({name for _, name in event.waiting_for if name})
    return f" behind {', '.join(names)}" if names else ""
