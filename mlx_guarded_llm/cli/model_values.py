"""A server's model and request as plain values, the same in every command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..backend import ModelInfo, RequestStatus


def as_json(model: ModelInfo) -> dict[str, Any]:
    """A model."""
    return {
        "name": model.name,
        "state": model.state,
        "pinned": model.pinned,
        "running": model.active,
        "waiting": model.waiting,
        "memory_bytes": model.memory_bytes,
        "context_window": model.context_window,
        "replicas": {name: list(one.states) for name, one in model.replicas.items()},
    }


def request_as_json(request: RequestStatus) -> dict[str, Any]:
    """A request under way."""
    return {
        "request_id": request.request_id,
        "model": request.model,
        "state": request.state,
        "words": request.words,
        "tokens": request.tokens,
    }
