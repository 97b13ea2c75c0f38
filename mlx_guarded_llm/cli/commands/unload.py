"""`mlx-guarded unload`: give the memory of a server's model back."""

from __future__ import annotations

from .. import arguments, backends
from ..console import out, say, short


def unload(
    model: arguments.Model,
    timeout: arguments.Timeout = None,
    url: arguments.Url = None,
) -> None:
    """Give a model's memory back, when its requests have ended.

    [dim]mlx-guarded unload phi3-mini[/dim]
    """
    with backends.open_server(url) as backend:
        was = backend.unload(model, timeout=timeout)
    say(out(), f"{short(model)} is unloaded" if was else f"{short(model)} was not loaded")
