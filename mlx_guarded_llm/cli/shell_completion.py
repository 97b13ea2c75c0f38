"""Names of models for shell completion. They come from file names alone, so it is quick."""

from __future__ import annotations

from pathlib import Path

from ..errors import GuardedLLMError


def model_names(incomplete: str) -> list[str]:
    """Aliases, repositories in the hub's cache and folders that begin with `incomplete`."""
    from ..models import hub
    from ..models.default_catalog import aliases

    try:
        names = [*aliases()]
    except GuardedLLMError:  # the command itself reports a broken aliases file
        names = []
    found = [name for name in (*names, *hub.repositories()) if name.startswith(incomplete)]
    return [*found, *_folders(incomplete)] if incomplete else found


def _folders(incomplete: str) -> list[str]:
    head, slash, _ = incomplete.rpartition("/")
    try:
        inside = sorted(
            path.name for path in Path(head + slash).expanduser().iterdir() if path.is_dir()
        )
    except (OSError, RuntimeError):
        return []
    folders = (f"{head}{slash}{name}/" for name in inside)
    return [folder for folder in folders if folder.startswith(incomplete)]
