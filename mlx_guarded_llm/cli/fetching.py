"""Getting a model onto the disk, with its progress shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models import Catalog, ModelFiles


def ensure(catalog: Catalog, name: str, *, revision: str | None = None) -> ModelFiles:
    """The files of a model, fetched first when they are not there."""
    spec = catalog.resolve(name, **({} if revision is None else {"revision": revision}))
    found = catalog.find(spec)
    if found is not None:
        return found
    from .progress import ProgressLine

    with ProgressLine(name) as progress:
        return catalog.ensure(spec, progress=progress.update)
