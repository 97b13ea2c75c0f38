"""`/` and what belongs to it.

The page itself has no data where keys are needed: it asks for its parts with the key that is
typed into it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ...record import phrases
from ...record.chart_svg import WIDTH, render_svg
from ..api import Api
from ..bodies import read_query
from ..context import Context, client_of
from ..errors import HTTPError
from ..openai.errors import OpenAIError, error_body
from .view import View, Viewer, short

HERE = Path(__file__).parent
MINUTES = (1, 5, 15)  # that the chart may go back
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",  # a key is never sent as a form
    "frame-ancestors": "'none'",
}
_HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Shown(BaseModel):
    """How the view is shown."""

    minutes: int = Field(default=5, ge=1, le=60)
    width: int = Field(default=WIDTH, ge=240, le=2400)


async def page(request: Request) -> Response:
    """The live view, for a browser."""
    if "text/html" not in request.headers.get("accept", ""):
        raise HTTPError(
            404,
            "not_found",
            "there is nothing at / for programs.",
            hint="A browser gets the live view there; /openapi.json lists the other paths.",
        )
    context = Context.of(request)
    locked = context.gate.needs_key
    view = None if locked else await _look(request, Shown())
    text = await _rendered("page.html", locked=locked, view=view, shown=Shown())
    return HTMLResponse(text, headers={**_HEADERS, "vary": "accept"})


async def now(request: Request) -> Response:
    """What changes in the live view, as HTML."""
    shown = read_query(request, Shown)
    view = await _look(request, shown)
    return HTMLResponse(await _rendered("now.html", view=view, shown=shown), headers=_HEADERS)


def _file(path: Path) -> Callable[[Request], Any]:
    content, kind = path.read_bytes(), _TYPES[path.suffix]

    async def send(request: Request) -> Response:
        """A file of the live view."""
        del request
        headers = {**_HEADERS, "cache-control": "no-cache"}
        return Response(content, headers=headers, media_type=kind)

    return send


async def _look(request: Request, shown: Shown) -> View:
    viewer: Viewer = request.app.state.viewer
    return await viewer.look(client_of(request), shown.minutes)


async def _rendered(template: str, **values: Any) -> str:
    return await asyncio.to_thread(_templates().get_template(template).render, **values)


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"MINUTES": MINUTES, "chart": _chart}
    filters: Mapping[str, Callable[..., str]] = {
        "seconds": phrases.seconds,
        "about": phrases.about,
        "size": phrases.size,
        "oneline": phrases.one_line,
        "short": short,
    }
    made.filters |= filters
    return made


def _chart(view: View, shown: Shown) -> Markup:
    assert view.activity is not None
    # It escapes all names itself.
    return Markup(render_svg(view.activity.chart, width=shown.width, live=True))


FILES = {f"/live/{path.name}": path for path in sorted((HERE / "static").iterdir())}
API = Api(
    routes=[
        Route("/", page),
        Route("/live/now", now),
        *(Route(url, _file(path)) for url, path in FILES.items()),
    ],
    error=error_body,
    error_body=OpenAIError,
    prefixes=("/live/",),
    queries={"/live/now": Shown},
)
