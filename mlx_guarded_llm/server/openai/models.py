"""`/v1/models`: the served models and their state.

`/models` of llama.cpp's router is the same list, as it is with llama.cpp: Open WebUI takes the
names from the one, and the states from either.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...backend import ModelInfo
from ..context import Context, client_of
from ..models import ServedModel

_STARTED = int(time.time())  # stands for "created", which is not known


async def list_models(request: Request) -> Response:
    """List the models the client may use."""
    context = Context.of(request)
    states = await context.models.states()
    found = context.models.visible(client_of(request))
    shown = await asyncio.gather(*(_describe(context, model, states) for model in found))
    return JSONResponse({"object": "list", "data": shown})


async def show_model(request: Request) -> Response:
    """Show one model."""
    context = Context.of(request)
    model = context.models.find(request.path_params["name"], client_of(request))
    return JSONResponse(await _describe(context, model, await context.models.states()))


async def _describe(
    context: Context, model: ServedModel, states: Mapping[str, ModelInfo]
) -> dict[str, Any]:
    """What is told of a model."""
    state = states.get(model.name)
    card = await model.card()
    shown = {
        "id": model.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "mlx-guarded-llm",
        "context_length": card.context_window if card else model.entry.context_window,
        "size": card.weight_bytes if card else None,
        "task": card.task if card else None,
        "state": model.state(state, card),
        "memory": state.memory_bytes if state else 0,
        "pinned": state.pinned if state else False,
        "replicas": {r: list(one.states) for r, one in state.replicas.items()} if state else {},
        "aliases": list(model.entry.aliases),
        "fallbacks": list(model.entry.fallbacks),
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "can_remove": False,
        "tags": [],
    }
    if model.remote is None:
        shown["status"] = context.loads.status(model.name, state)  # as llama.cpp has it
    return shown
