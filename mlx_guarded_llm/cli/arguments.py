"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .shell_completion import model_names

SAMPLING = "Sampling"
GUARD = "Guard and memory"
LOADING = "Loading"
SERVER = "Server"

Model = Annotated[
    str,
    typer.Argument(
        help="Alias, folder or Hugging Face repository.",
        metavar="MODEL",
        show_default=False,
        autocompletion=model_names,
    ),
]
System = Annotated[str | None, typer.Option(help="System message.", show_default=False)]
MaxTokens = Annotated[
    int, typer.Option(help="Tokens to generate at most.", rich_help_panel=SAMPLING)
]
_OWN = "the model's own, else"
Temperature = Annotated[
    float | None,
    typer.Option(
        help="0 takes the likeliest token.", show_default=f"{_OWN} 0", rich_help_panel=SAMPLING
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Smallest set of this probability.",
        show_default=f"{_OWN} 1",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        help="Likeliest tokens kept; 0 keeps all.",
        show_default=f"{_OWN} 0",
        rich_help_panel=SAMPLING,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        help="Least share of the likeliest token.",
        show_default=f"{_OWN} 0",
        rich_help_panel=SAMPLING,
    ),
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
ThinkingBudget = Annotated[
    int | None,
    typer.Option(help="Tokens of thinking at most.", show_default=False),
]
Timeout = Annotated[
    float | None,
    typer.Option(help="Seconds for everything, loading too.", show_default=False),
]
LoadWait = Annotated[
    float | None,
    typer.Option(
        help="Seconds a load waits for generations before they pause.",
        show_default="120",
        rich_help_panel=GUARD,
    ),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        help='Memory for models, such as "12GB".', show_default=False, rich_help_panel=GUARD
    ),
]


Revision = Annotated[
    str | None,
    typer.Option(
        help="Branch, tag or commit of its repository.",
        show_default=False,
        rich_help_panel=LOADING,
    ),
]
AdapterPath = Annotated[
    Path | None,
    typer.Option(
        help="Folder of LoRA adapters.",
        show_default=False,
        file_okay=False,
        exists=True,
        rich_help_panel=LOADING,
    ),
]
KVBits = Annotated[
    int | None,
    typer.Option(
        help="Bits of the KV cache: 2, 4 or 8.", show_default=False, rich_help_panel=LOADING
    ),
]
KVGroupSize = Annotated[
    int | None,
    typer.Option(
        help="Values of it that share a scale: 32, 64 or 128.",
        show_default=False,
        rich_help_panel=LOADING,
    ),
]
ContextWindow = Annotated[
    int | None,
    typer.Option(
        help="Tokens it may attend to.", show_default=False, min=1, rich_help_panel=LOADING
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        help='Smaller model that drafts its answers, or "prompt".',
        show_default=False,
        autocompletion=model_names,
        rich_help_panel=LOADING,
    ),
]
Hosts = Annotated[
    str | None,
    typer.Option(
        help='Machines it is spread over: "10.0.0.1,10.0.0.2", a hostfile, or "local:2".',
        show_default=False,
        rich_help_panel=LOADING,
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
Url = Annotated[
    str | None,
    typer.Option(
        help='Ask this server: "http://host:port" or "unix:///path". Its key is in '
        "MLX_GUARDED_KEY.",
        show_default="MLX_GUARDED_URL, else your shared server",
        rich_help_panel=SERVER,
    ),
]
Local = Annotated[
    bool,
    typer.Option("--local", help="Ask no server, even if one runs.", rich_help_panel=SERVER),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}
