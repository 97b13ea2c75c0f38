"""`mlx-guarded unpin`: let a server evict a model again."""

from __future__ import annotations

from .. import arguments, backends
from ..console import out, say, short


def unpin(model: arguments.Model, url: arguments.Url = None) -> None:
    """Let a model be evicted that was loaded with --pin. It stays for now.

    [dim]mlx-guarded unpin phi3-mini[/dim]
    """
    with backends.open_server(url) as backend:
        was = backend.unpin(model)
    say(out(), f"{short(model)} may be evicted" if was else f"{short(model)} was not pinned")
