"""`mlx-guarded trace`: show a trace in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from .. import reporting
from ..console import out, say

if TYPE_CHECKING:
    from ...record import Timeline


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
    from ...record import read_perfetto, timeline

    show(timeline(read_perfetto(file)))


def show(chart: Timeline) -> None:
    """Print a chart, and whether anything overlapped in it.

    Raises:
        typer.Exit: something did.
    """
    from ...record import overlaps, render_text
    from ..record_summary import overlap_lines

    overlapped = bool(overlaps(chart))
    out().print(render_text(chart))
    out().print()
    for line in overlap_lines(chart):
        say(out(), Text(line, style="red" if overlapped else "green"))
    if overlapped:
        raise typer.Exit(reporting.FAILED)
