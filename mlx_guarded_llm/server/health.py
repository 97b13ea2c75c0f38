"""Whether it lives, and whether it takes requests."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..backend import Health
from ..errors import RequestTimeout
from ..holder import held_bytes
from .api import Api
from .context import Context, client_of
from .errors import HTTPError, retry_headers

PATIENCE = 2.0  # seconds for the thread that decides everything to answer
_DEAD = ("stuck", "stalled", "failed", "closed")


async def health(request: Request) -> Response:
    """Alive, by whether the engine gets on, and how long the oldest request has waited."""
    context = Context.of(request)
    context.tally.catch_up()
    now = await ask(context)
    word = status(context, now)
    found: dict[str, Any] = {"status": word}
    if now is not None:
        found |= {
            "engine": now.engine,
            "stalled_seconds": round(now.stalled, 3),
            "running": now.running,
            "waiting": now.waiting,
            "oldest_waiting_seconds": round(now.oldest_waiting, 3),
            "memory_bytes": now.memory_bytes,
            "memory_budget_bytes": now.budget_bytes,
            "memory_elsewhere_bytes": held_bytes(now.held_by),
        }
        if client_of(request).admin:
            found["memory_held_by"] = [holder._asdict() for holder in now.held_by]
    found["engine_deaths"] = context.tally.deaths
    last = context.tally.last_death
    if last is not None:
        ago = round(time.monotonic() - last.time, 3)
        found["last_death"] = {"cause": last.cause, "seconds_ago": ago}
    return JSONResponse(found, 503 if word in _DEAD else 200)


async def ready(request: Request) -> Response:
    """Whether a new request would be taken."""
    context = Context.of(request)
    context.ending.check()
    now = await ask(context)
    word = status(context, now)
    if word in _DEAD:
        raise HTTPError(503, word, f"the backend is {word}.", hint="/health tells more.")
    if now is not None and now.full:
        raise HTTPError(
            503,
            "queue_full",
            f"{now.waiting} requests wait, the oldest for {now.oldest_waiting:.1f} s.",
            headers=retry_headers(now.room),
        )
    return JSONResponse({"status": "ready"})


async def ask(context: Context) -> Health | None:
    """None if nothing decides any more."""
    try:
        return await context.backend.ahealth(timeout=PATIENCE)
    except RequestTimeout:
        return None


def status(context: Context, now: Health | None) -> str:
    """One word for it.

    A worker that stands still is replaced at `stall_timeout`. Half of that is long enough to
    say so.
    """
    if now is None:
        return "stuck"
    if now.engine in ("failed", "closed"):
        return now.engine
    if now.stalled > context.settings.guard.stall_timeout / 2:
        return "stalled"
    if context.ending.begun:
        return "ending"
    return "recovering" if now.engine == "starting" and context.tally.deaths else "ok"


class Unwell(BaseModel):
    """The shape of an error; /health tells more than that."""

    status: str
    message: str | None = None


def _error(error: HTTPError) -> dict[str, Any]:
    return {"status": error.code, "message": error.message}


API = Api(
    routes=[Route("/health", health), Route("/ready", ready)],
    error=_error,
    error_body=Unwell,
    prefixes=("/health", "/ready"),
)
