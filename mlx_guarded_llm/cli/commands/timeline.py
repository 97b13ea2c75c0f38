"""`mlx-guarded timeline`: who generated, waited and loaded in a server, as a chart."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import arguments, backends, reporting
from .trace import show


def timeline(
    seconds: Annotated[float, typer.Option(min=1, help="How far it goes back.")] = 600.0,
    trace: arguments.Trace = None,
    url: arguments.Url = None,
) -> None:
    """Draw who generated, waited and loaded in the last minutes.

    The exit code is 1 when a load or other exclusive work overlapped a
    generation.

    [dim]mlx-guarded timeline
    mlx-guarded timeline --seconds 60
    mlx-guarded timeline --trace server.json      all that is kept, as a file[/dim]
    """
    from ...record import timeline, write_perfetto

    with backends.open_server(url) as backend:
        now = backend.news(most=1).now
        events = backend.events()
    if trace is not None:
        write_perfetto(events, trace)
        reporting.note(f"the trace is in {trace}; `mlx-guarded trace {trace}` shows it.")
    first = min((event.time for event in events), default=now)
    show(timeline(events, since=max(now - seconds, first), until=now))
