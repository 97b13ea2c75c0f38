"""`mlx-guarded doctor`: does it work here, and what to do if not."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ...record.phrases import counted
from .. import reporting
from ..console import harmless, out
from ..doctor.checks import Check, checks


def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Also test whether the model hub can be reached.")
    ] = False,
) -> None:
    """Check that everything works on this machine.

    It makes a tiny model in a temporary folder, loads it and lets it generate.
    The exit code is 1 when something is wrong.

    [dim]mlx-guarded doctor[/dim]
    """
    problems = 0
    with out().status("trying it out"):
        for check in checks(online=online):
            problems += not check.ok
            out().print(row(check))
    if problems:
        out().print(Text(f"\n{counted(problems, 'problem')} found.", style="bold red"))
        raise typer.Exit(reporting.FAILED)
    out().print(Text("\nAll is well.", style="bold green"))


def row(check: Check) -> Table:
    """A check on one line, with its hint on the next."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=7)
    table.add_column(width=9)
    table.add_column(overflow="fold")
    sign = Text("ok", style="green") if check.ok else Text("problem", style="bold red")
    table.add_row(sign, Text(check.name, style="bold"), harmless(check.text))
    if check.hint:
        table.add_row("", "", Text(harmless(check.hint), style="cyan"))
    return table
