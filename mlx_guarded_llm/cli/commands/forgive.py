"""`mlx-guarded forgive`: let a server load a model again that it has in quarantine."""

from __future__ import annotations

from .. import arguments, backends
from ..console import out, say, short


def forgive(model: arguments.Model, url: arguments.Url = None) -> None:
    """Let a model be loaded again that is in quarantine.

    That is where one goes of which the engine died several times.

    [dim]mlx-guarded forgive phi3-mini[/dim]
    """
    with backends.open_server(url) as backend:
        was = backend.forgive(model)
    say(
        out(),
        f"{short(model)} may be loaded again" if was else f"{short(model)} was not in quarantine",
    )
