"""`mlx-guarded pull`: fetch a model."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from ...record.phrases import size
from .. import arguments
from ..console import out


def pull(
    model: arguments.Model,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit.", show_default=False)
    ] = None,
) -> None:
    """Fetch a model, so that it can be used without a network.

    [dim]mlx-guarded pull smollm2-135m
    mlx-guarded pull mlx-community/Qwen3-4B-4bit --revision main[/dim]
    """
    from ..progress import fetch

    files = fetch(model, revision=revision)
    out().print(Text(str(files.path)), soft_wrap=True)
    out().print(
        f"{size(files.weight_bytes)} of weights, {files.context_window:,} tokens of context",
        soft_wrap=True,
    )
