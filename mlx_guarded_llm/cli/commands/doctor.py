"""`mlx-guarded doctor`: does it work here, why is a server slow, and what to do."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ...record.phrases import counted
from .. import arguments, backends, reporting
from ..console import harmless, out, say
from ..doctor.checks import Check, checks
from ..doctor.server import of_server


def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Also test whether the model hub can be reached.")
    ] = False,
    url: arguments.Url = None,
    local: arguments.Local = False,
) -> None:
    """Check that everything works here, and tell why a server is slow or waits.

    On this machine it makes a tiny model in a temporary folder, loads it and
    lets it generate. With --url only that server is looked at: who waits for
    whom, what was evicted again and again, what died, where the time goes.
    Will two models fit? `mlx-guarded fit` tells.

    The exit code is 1 when something is wrong.

    [dim]mlx-guarded doctor
    mlx-guarded doctor --url http://127.0.0.1:8080[/dim]
    """
    server = backends.find_server(url=url, local=local)
    problems = 0
    if url is None:
        with out().status("trying it out"):
            for check in checks(online=online):
                problems += not check.ok
                out().print(row(check))
    if server is not None:
        if url is None:
            say(out(), Text(f"\nThe server at {server}:", style="bold"))
        for check in of_server(server):
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
