"""`mlx-guarded rm`: delete a fetched model."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import InvalidRequest
from . import options
from .console import out
from .words import size


def rm(
    model: options.Model,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a fetched model from the disk.

    Folders of your own are never deleted.

    [dim]mlx-guarded rm smollm2-135m-bf16[/dim]
    """
    from ..models import Catalog

    catalog = Catalog()
    spec = catalog.resolve(model)
    if spec.kind == "folder":
        raise InvalidRequest(
            f"{spec.location} is your own folder and is not removed.",
            hint="Delete it yourself if you no longer need it.",
        )
    if not yes:
        typer.confirm(f"Delete {model} from the disk?", abort=True, err=True)
    freed = catalog.remove(model)
    out().print(f"{size(freed)} freed" if freed else f"{model} was not on the disk")
