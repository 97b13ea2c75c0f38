"""The application: its commands and the options that stand before a command."""

from __future__ import annotations

from typing import Annotated

import typer

from ..version import __version__
from . import report
from .chat import chat
from .console import out
from .demo import demo
from .doctor import doctor
from .models import models
from .pull import pull
from .rm import rm
from .run import run
from .trace import trace

app = typer.Typer(
    name="mlx-guarded",
    cls=report.Application,
    help="Several MLX models in one process: no load overlaps a generation.",
    epilog=(
        "Start with [bold]mlx-guarded demo[/bold], or "
        '[bold]mlx-guarded run smollm2-135m "What is the capital of France?"[/bold]'
    ),
    rich_markup_mode="rich",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for _command in (demo, run, chat, pull, models, rm, doctor, trace):
    app.command()(_command)


def _version(wanted: bool) -> None:
    if wanted:
        out().print(f"mlx-guarded-llm {__version__}")
        raise typer.Exit()


@app.callback()
def begin(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell on stderr what the guard does.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    _: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Set up what all commands share."""
    report.set_up(verbose=verbose, debug=debug)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line and exit."""
    app(prog_name="mlx-guarded")
