"""`mlx-guarded config`: the settings of the server, and where each comes from."""

from __future__ import annotations

import json

from rich.table import Table
from rich.text import Text

from .. import arguments
from ..console import harmless, out, write
from .serve import Config, load


def config(config: Config = None, as_json: arguments.AsJson = False) -> None:
    """Show the settings of the server that are in force, where each comes from, and check them.

    [dim]mlx-guarded config --config server.toml
    MLX_GUARDED_PORT=9000 mlx-guarded config --json | jq .port[/dim]
    """
    loaded = load(config, {})
    from ...server.security import Gate
    from ...server.settings import in_force

    Gate(loaded.settings)
    settings = list(in_force(loaded))
    if as_json:
        shown = {name: {"value": value, "from": origin} for name, value, origin in settings}
        write(json.dumps(shown, indent=2) + "\n")
        return
    table = Table.grid(padding=(0, 2))
    for name, value, origin in settings:
        style = "dim" if origin == "default" else "bold"
        table.add_row(
            Text(name, style=style), harmless(json.dumps(value)), Text(origin, style="dim")
        )
    out().print(table)
