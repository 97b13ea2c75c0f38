"""The application: its commands, and the options that come before a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..version import __version__
from . import reporting
from .commands.cancel import cancel
from .commands.chat import chat
from .commands.config import config
from .commands.demo import demo
from .commands.doctor import doctor
from .commands.embed import embed
from .commands.events import events
from .commands.explain import explain
from .commands.forgive import forgive
from .commands.load import load
from .commands.models import models
from .commands.pull import pull
from .commands.rm import rm
from .commands.run import run
from .commands.serve import serve
from .commands.status import status
from .commands.stop import stop
from .commands.timeline import timeline
from .commands.trace import trace
from .commands.unload import unload
from .commands.unpin import unpin
from .console import out, show_any_character


class Application(TyperGroup):
    """Runs a command and reports every failure."""

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
_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Models": (run, chat, embed, models, pull, rm),
    "A server: the one at --url or in MLX_GUARDED_URL, or your shared one": (
        *(status, stop, load, unload, unpin, forgive),
        *(cancel, explain, timeline, events),
    ),
    "This machine": (serve, config, demo, doctor, trace),
}
for _panel, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)


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
