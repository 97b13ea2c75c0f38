"""`mlx-guarded explain`: the story of a server's request."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.text import Text

from ...errors import InvalidRequest
from ...record.phrases import about
from .. import arguments, backends
from ..console import harmless, out, say, write


def explain(
    request: Annotated[
        str | None,
        typer.Argument(
            help="Its id; an answer has it in its guard and in the header x-guard-request-id.",
            metavar="[REQUEST]",
            show_default="the latest",
        ),
    ] = None,
    url: arguments.Url = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Tell the story of a request.

    [dim]mlx-guarded explain
    mlx-guarded explain chatcmpl-a4be82225e8a4a25858886a8af5673e8[/dim]
    """
    from ...record import explain

    with backends.open_server(url) as backend:
        events = backend.events()
        if request is None:
            latest = (event.request_id for event in reversed(events) if event.request_id)
            request = next(latest, None)
        if request is None:
            raise InvalidRequest("the record has no request yet.")
        story, wait = explain(events, request), backend.expected_wait(request)
    if as_json:
        expected = {} if wait is None else {"expected_wait_seconds": round(wait, 1)}
        write(json.dumps({"request_id": request, "story": story, **expected}) + "\n")
        return
    say(out(), Text(harmless(story)))
    if wait is not None:
        say(out(), f"It is expected to start in {about(wait)}.")
