"""`mlx-guarded trace`: show a trace in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from . import report
from .console import out, say


def trace(
    file: Annotated[
        Path,
        typer.Argument(
            help="What --trace wrote.",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ],
) -> None:
    """Show a trace that --trace or backend.write_trace wrote.

    The exit code is 1 when a load or other exclusive work overlapped a
    generation in it.

    [dim]mlx-guarded demo --trace demo.json && mlx-guarded trace demo.json[/dim]
    """
    from ..record import overlaps, render_text
    from .trace_file import read_trace
    from .verdict import overlap_lines

    timeline = read_trace(file)
    overlapped = bool(overlaps(timeline))
    out().print(render_text(timeline))
    out().print()
    for line in overlap_lines(timeline):
        say(out(), Text(line, style="red" if overlapped else "green"))
    if overlapped:
        raise typer.Exit(report.FAILED)
