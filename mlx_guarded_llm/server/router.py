"""The API by which llama.cpp's router is driven: models and their states, loads, unloads.

Open WebUI drives it where a connection's provider is "llama.cpp". `pin` and `unpin` are ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from pydantic import BaseModel
from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .api import Api
from .bodies import read_body
from .context import Context, check_admin, client_of
from .errors import HTTPError
from .events import OpenStream, event
from .following import follow
from .models import ServedModel
from .openai.errors import OpenAIError, error_body
from .openai.models import list_models
from .security import Client

_TELLING = ("load.", "unload.", "engine.", "model.")  # events after which states may be others


class Named(BaseModel):
    """The body: a model. Clients send more for other servers, which means nothing here."""

    model: str


async def refuse(request: Request) -> Response:
    """llama.cpp's router downloads and deletes models so, and Open WebUI has buttons for it."""
    check_admin(request)
    raise HTTPError(
        403,
        "not_allowed",
        "models are neither downloaded nor deleted over HTTP.",
        hint="The server's settings name its models; `mlx-guarded pull` and `mlx-guarded rm` fetch "
        "and delete them.",
    )


async def load(request: Request) -> Response:
    """Begin to load a model. How it goes on is told by `/models/sse`."""
    return await _load(request, pin=False)


async def pin(request: Request) -> Response:
    """As `load`; and it is not evicted from then on."""
    return await _load(request, pin=True)


async def unload(request: Request) -> Response:
    """Unload a model, when its requests have ended."""
    context, model = await _model(request)
    await context.loads.unload(model, patience=context.settings.early_errors)
    return JSONResponse({"success": True})


async def unpin(request: Request) -> Response:
    """Let a model be evicted again."""
    context, model = await _model(request)
    was = await asyncio.to_thread(context.backend.unpin, model.name)
    return JSONResponse({"success": True, "was_pinned": was})


async def changes(request: Request) -> Response:
    """The states of models as they change, and how far loads have come."""
    context = Context.of(request)
    return OpenStream(
        _changes(context, client_of(request)),
        context.ending,
        heartbeat=context.settings.heartbeat,
    )


async def _load(request: Request, *, pin: bool) -> Response:
    context, model = await _model(request)
    context.ending.check()
    # What is refused is refused at once, so it has a status of its own.
    await context.loads.load(model, pin=pin, patience=context.settings.early_errors)
    return JSONResponse({"success": True})


async def _model(request: Request) -> tuple[Context, ServedModel]:
    check_admin(request)
    context = Context.of(request)
    body = await read_body(request, Named, context.settings.limits)
    model = context.models.find(body.model, client_of(request))
    model.check_local("loaded, unloaded or pinned")
    return context, model


async def _changes(context: Context, client: Client) -> AsyncIterator[ServerSentEvent]:
    """From two sources: the record says when states may have changed, loads how far they are."""
    names = [model.name for model in context.models.visible(client) if model.remote is None]
    values: dict[str, str] = {}
    called: dict[str, str] = {}  # what the backend calls the model of each name, if it has it
    queue = context.loads.listen()
    reader = asyncio.create_task(_read(context, queue))
    try:
        while True:
            item = await queue.get()
            if isinstance(item, tuple):  # a load, and how far it is
                model, progress = item
                for name in names:
                    if called.get(name, name) == model:
                        values[name] = "loading"
                        yield _change(name, {"status": "loading", "progress": progress})
                continue
            states = await context.models.states()
            called = {name: info.name for name, info in states.items()}
            for name in names:
                value = context.loads.value(name, states.get(name))
                before, values[name] = values.get(name), value
                if before in (None, value):
                    continue
                data: dict[str, Any] = {"status": value}
                if value == "unloaded":
                    error = context.loads.errors.get(name, "")
                    data |= {"exit_code": int(bool(error)), **({"error": error} if error else {})}
                yield _change(name, data)
    finally:
        context.loads.leave(queue)
        reader.cancel()


async def _read(context: Context, queue: asyncio.Queue[Any]) -> None:
    _, position = context.backend.record.since(-1)
    queue.put_nowait(None)  # what the states are at first
    async for events, _ in follow(context.backend.record, position):
        if any(event.kind.startswith(_TELLING) for event in events):
            await queue.put(None)


def _change(model: str, data: Mapping[str, Any]) -> ServerSentEvent:
    return event({"model": model, "event": "status_change", "data": data})


API = Api(
    routes=[
        Route("/models", list_models),
        Route("/models", refuse, methods=["POST", "DELETE"]),
        Route("/models/sse", changes),
        Route("/models/load", load, methods=["POST"]),
        Route("/models/unload", unload, methods=["POST"]),
        Route("/models/pin", pin, methods=["POST"]),
        Route("/models/unpin", unpin, methods=["POST"]),
    ],
    error=error_body,
    error_body=OpenAIError,
    prefixes=("/models",),
    bodies={f"/models/{what}": Named for what in ("load", "unload", "pin", "unpin")},
)
