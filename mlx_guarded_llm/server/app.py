"""The application: its APIs, and what stands before each of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..backend import ServableBackend
from ..logs import get_logger
from . import anthropic, health, live, native, openai, router, watching
from .api import Api, error_response
from .context import CROWDED, Context, new_id
from .conversations import Conversations
from .description import describe
from .errors import RETRY_AFTER, HTTPError, http_error, phrase
from .live.view import Viewer
from .loads import Loads
from .log_lines import REQUEST_ID, access
from .models import ServedModels
from .security import Client, Gate
from .settings import Settings
from .tally import Tally
from .warming import warm

logger = get_logger("server")

# The first whose prefix fits tells of an error; OpenAI's shape is that of every other path.
APIS: tuple[Api, ...] = (
    health.API,
    router.API,
    native.API,
    watching.API,
    live.API,
    anthropic.API,
    openai.API,
)


def create_app(backend: ServableBackend, settings: Settings) -> Starlette:
    """The ASGI application of a server.

    Args:
        backend: runs the models; it is not closed with the application. It must know them
            by the names of the settings, as one of `open_backend` does.
        settings: of the server.

    Raises:
        InvalidRequest: the settings contradict each other.
    """
    models = ServedModels(backend, settings)
    names = [model.name for model in models.visible(Client())]
    context = Context(
        settings,
        backend,
        Gate(settings),
        models,
        tally=Tally(backend.record, names),
        loads=Loads(backend),
        conversations=Conversations(settings.limits.conversations_bytes),
    )
    middleware = [Middleware(Guarded, context=context)]
    if settings.allowed_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
        middleware.insert(0, cors)
    app = Starlette(
        routes=[*(route for api in APIS for route in api.routes), Route("/openapi.json", _openapi)],
        middleware=middleware,
        exception_handlers={HTTPException: _no_route},
        lifespan=_lifespan,
    )
    app.state.context = context
    app.state.viewer = Viewer(context)
    return app


class Guarded:
    """Lets through who may ask, and turns what is raised into the shape of the API.

    Args:
        app: what is behind it.
        context: of the server.
    """

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False
        request_id = new_id("req")
        REQUEST_ID.set(request_id)
        began = time.monotonic()
        status, guard_request_id, client = 0, "", Client()

        async def noting(message: Message) -> None:
            nonlocal begun, status, guard_request_id
            if message["type"] == "http.response.start":
                begun = True
                status = message["status"]
                headers = MutableHeaders(scope=message)
                guard_request_id = headers.get("x-guard-request-id", "")
                headers.append("x-request-id", request_id)  # OpenAI's name for it
                headers.append("request-id", request_id)  # Anthropic's
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_crowd(scope)
            _check_length(headers)
            client = self._context.gate.client(scope["path"], headers, _unix_socket(scope))
            scope.setdefault("state", {})["client"] = client
            await self._app(scope, receive, noting)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:
            said = http_error(error)
            if said.code == "internal_error":
                logger.error("%s of %s failed", request_id, scope["path"], exc_info=error)
            if begun:
                raise
            await error_response(APIS, scope["path"], said)(scope, receive, noting)
        finally:
            seconds = time.monotonic() - began
            access.info(
                "%s %s %d in %.3f s",
                scope["method"],
                scope["path"],
                status,
                seconds,
                extra={
                    "http_method": scope["method"],
                    "http_path": scope["path"],
                    "http_status": status,
                    "seconds": round(seconds, 4),
                    "client": client.name,
                    "guard_request_id": guard_request_id,
                },
            )

    def _check_crowd(self, scope: Scope) -> None:
        # Whoever looks after the server must not take it for dead because it is full.
        if CROWDED in scope.get("state", {}) and scope["path"] != "/health":
            most = self._context.settings.limits.connections
            raise HTTPError(
                503,
                "too_many_connections",
                f"{most:,} connections are open, which are the most.",
                hint="The server's setting limits.connections says so.",
                headers={"retry-after": str(RETRY_AFTER), "connection": "close"},
            )


def _unix_socket(scope: Scope) -> str | None:
    host, port = scope.get("server") or (None, None)
    return host if port is None else None


def _check_length(headers: Headers) -> None:
    # A proxy that goes by the other of the two would take what follows for another request.
    if "content-length" in headers and "transfer-encoding" in headers:
        raise HTTPError(
            400,
            "invalid_request",
            "the body has a content-length and a transfer-encoding.",
            headers={"connection": "close"},
        )


async def _openapi(request: Request) -> Response:
    """This document."""
    del request
    return JSONResponse(describe(APIS))


async def _no_route(request: Request, error: Exception) -> Response:
    """No path of ours, or not with this method."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    path = request.url.path[:200]
    what = {404: f"there is nothing at {path}.", 405: f"{request.method} is no method of {path}."}
    raise HTTPError(
        status,
        {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request"),
        what.get(status, f"{phrase(status)}."),
        headers=dict(error.headers or {}),
    )


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    context: Context = app.state.context
    with context.loads.following():
        async with warm(context.models, context.backend), context.tally.counting():
            yield
        context.loads.stop()
