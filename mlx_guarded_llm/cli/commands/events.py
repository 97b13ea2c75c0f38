"""`mlx-guarded events`: the record of a server, as it grows."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from .. import arguments, backends
from ..console import harmless, write

if TYPE_CHECKING:
    from ...record import Event

_PAUSE = 0.5  # seconds between two looks


def events(
    last: Annotated[int, typer.Option(min=1, help="Events to begin with.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C, as they happen.")
    ] = False,
    url: arguments.Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object on each line.")] = False,
) -> None:
    """List what happened last, or follow it.

    [dim]mlx-guarded events --follow
    mlx-guarded events --last 1000 --json | jq 'select(.kind == "load.deferred")'[/dim]
    """
    with backends.open_server(url) as backend:
        news = backend.news(most=last)
        while True:
            ahead = time.time() - news.now  # of its clock
            for event in news.events:
                write((_as_json(event, ahead) if as_json else _as_line(event, ahead)) + "\n")
            if not follow:
                return
            time.sleep(_PAUSE)
            news = backend.news(news.mark, most=last)


def _as_line(event: Event, ahead: float) -> str:
    from ...record.log import line

    text = f"{_clock(event, ahead):%H:%M:%S.%f}"[:-4] + f"  {line(event)}"
    return harmless(text) if sys.stdout.isatty() else text


def _as_json(event: Event, ahead: float) -> str:
    from ...record.events import as_dict

    at = _clock(event, ahead).astimezone().isoformat(timespec="milliseconds")
    return json.dumps({"at": at, **as_dict(event)}, ensure_ascii=False)


def _clock(event: Event, ahead: float) -> datetime:
    return datetime.fromtimestamp(event.time + ahead)
