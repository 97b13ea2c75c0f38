"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

SAMPLING = "Sampling"
GUARD = "Guard and memory"

Model = Annotated[
    str,
    typer.Argument(
        help="Alias, folder or Hugging Face repository.", metavar="MODEL", show_default=False
    ),
]
System = Annotated[str | None, typer.Option(help="System message.", show_default=False)]
MaxTokens = Annotated[
    int, typer.Option(help="Tokens to generate at most.", rich_help_panel=SAMPLING)
]
Temperature = Annotated[
    float, typer.Option(help="0 takes the likeliest token.", rich_help_panel=SAMPLING)
]
TopP = Annotated[
    float, typer.Option(help="Smallest set of this probability.", rich_help_panel=SAMPLING)
]
TopK = Annotated[
    int, typer.Option(help="Likeliest tokens kept; 0 keeps all.", rich_help_panel=SAMPLING)
]
MinP = Annotated[
    float, typer.Option(help="Least share of the likeliest token.", rich_help_panel=SAMPLING)
]
Seed = Annotated[
    int | None,
    typer.Option(help="Same seed, same tokens.", show_default=False, rich_help_panel=SAMPLING),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        help="Text that ends the answer; repeatable.", show_default=False, rich_help_panel=SAMPLING
    ),
]
Thinking = Annotated[
    bool | None,
    typer.Option("--thinking/--no-thinking", help="For models that can.", show_default=False),
]
Timeout = Annotated[
    float | None,
    typer.Option(help="Seconds for everything, loading too.", show_default=False),
]
LoadWait = Annotated[
    float,
    typer.Option(
        help="Seconds a load waits for generations before they pause.", rich_help_panel=GUARD
    ),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        help='Memory for models, such as "12GB".', show_default=False, rich_help_panel=GUARD
    ),
]


def _writable(path: Path | None) -> Path | None:
    # Said before the work is done, not after.
    if path is not None and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.absolute().parent}.")
    return path


Trace = Annotated[
    Path | None,
    typer.Option(
        help="Write a trace, for `mlx-guarded trace` or ui.perfetto.dev.",
        show_default=False,
        dir_okay=False,
        callback=_writable,
        rich_help_panel=GUARD,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}
