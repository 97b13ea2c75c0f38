"""The application: its commands, and the options that come before a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperGroup, TyperOption

from ..version import __version__
from . import reporting
from .console import out, show_any_character
from .overview import COMMANDS, show_overview


class _Commands(Mapping[str, Any]):
    """The commands by name. The module of one is imported when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        function = getattr(import_module(f".commands.{name}", __package__), name)
        alone = typer.Typer(
            add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False
        )
        alone.command(name)(function)
        return typer.main.get_command(alone)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Application(TyperGroup):
    """Runs a command and reports every failure."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = cast("Any", _Commands())

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, in the order of the overview."""
        return [*self.commands]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the overview. typer's own would import every command, and a parser of Markdown."""
        options = [param for param in self.get_params(ctx) if isinstance(param, TyperOption)]
        show_overview(self.get_usage(ctx), str(self.help), options, str(self.epilog))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """As in typer, but errors are reported as ours, and it always exits."""
        show_any_character()
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            code = reporting.CANCELLED
        except BrokenPipeError:
            # The reader of our output has gone, as `head` does. Without this the interpreter
            # would complain again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = reporting.FAILED
        except Exception as error:
            code = reporting.report(error)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """As in typer, but Ctrl-C in a command prints a note."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, typer.Abort):
            reporting.note("cancelled.")
            raise typer.Exit(reporting.CANCELLED) from None


app = typer.Typer(
    name="mlx-guarded",
    cls=Application,
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
    """Apply the options that come before the command."""
    reporting.set_up(verbose=verbose, debug=debug)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line and exit."""
    app(prog_name="mlx-guarded")
