"""Functions for the default catalog: list aliases, download a model, remove one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .aliases import Alias
from .catalog import Catalog
from .spec import ModelFiles, OnProgress


def aliases() -> Mapping[str, Alias]:
    """Every short name and what it means; see `Catalog.aliases`."""
    return Catalog().aliases()


def pull(
    model: str | Path, *, on_progress: OnProgress | None = None, **options: object
) -> ModelFiles:
    """Download a model, so that it can be used without a network.

    Args:
        model: alias, folder or Hugging Face repository.
        on_progress: called in this thread with the stages of `Catalog.ensure`.
        **options: revision and so on, as for `Catalog.resolve`.

    Raises:
        ModelError: as `Catalog.resolve` and `Catalog.ensure`.
    """
    catalog = Catalog()
    return catalog.ensure(catalog.resolve(model, **options), progress=on_progress)


def rm(model: str | Path) -> int:
    """Delete a downloaded model from the disk; see `Catalog.remove`.

    Returns:
        The bytes freed, 0 if it was not there.
    """
    return Catalog().remove(model)
