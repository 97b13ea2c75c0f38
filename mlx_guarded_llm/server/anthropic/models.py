"""`/v1/models` in Anthropic's shape, for requests with the header `anthropic-version`.

All other requests to these paths go to OpenAI's API.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from ..context import Context, client_of
from ..models import ServedModel

_STARTED = datetime.now(UTC).isoformat()  # clients require a date; a model's own is unknown


class VersionedRoute(Route):
    """A route that matches only requests with Anthropic's header."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See `Route`."""
        if scope["type"] != "http" or "anthropic-version" not in Headers(scope=scope):
            return Match.NONE, {}
        return super().matches(scope)


async def list_models(request: Request) -> Response:
    """List the models that the client may use, on one page."""
    found = Context.of(request).models.visible(client_of(request))
    return JSONResponse(
        {
            "data": await asyncio.gather(*(_shown(model) for model in found)),
            "has_more": False,
            "first_id": found[0].name if found else None,
            "last_id": found[-1].name if found else None,
        }
    )


async def show_model(request: Request) -> Response:
    """Describe one model."""
    models = Context.of(request).models
    return JSONResponse(await _shown(models.find(request.path_params["name"], client_of(request))))


async def _shown(model: ServedModel) -> dict[str, Any]:
    card = await model.card()
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": _STARTED,
        "lifecycle": "active",
        "max_input_tokens": card.context_window if card else model.entry.context_window,
        "max_tokens": card.max_output or card.context_window if card else None,
    }
