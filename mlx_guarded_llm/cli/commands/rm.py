"""`mlx-guarded rm`: delete a fetched model."""

from __future__ import annotations

from typing import Annotated

import typer

from ...record.phrases import size
from .. import arguments, reporting
from ..console import out


def rm(
    model: arguments.Model,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a fetched model from the disk.

    Folders of your own are never deleted.

    [dim]mlx-guarded rm smollm2-135m-bf16[/dim]
    """
    from ...models import Catalog, default_catalog

    own = Catalog().resolve(model).kind == "folder"  # is refused, so there is nothing to ask
    if not (yes or own or typer.confirm(f"Delete {model} from the disk?", err=True)):
        reporting.note(f"{model} stays.")
        return
    freed = default_catalog.rm(model)
    out().print(f"{size(freed)} freed" if freed else f"{model} was not on the disk")
