"""How the command line fails: one line for the error, one for what to do, an exit code.

0    done                      2    the command line is wrong
1    failed                    130  Ctrl-C
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from rich.text import Text
from typer.core import TyperGroup

from ..errors import GuardedLLMError, InvalidRequest
from .console import err, harmless, say

FAILED = 1
USAGE = 2
CANCELLED = 130

_SPELLINGS = {
    "`aliases()`": "`mlx-guarded models`",
    "memory_budget": "--memory-budget",
    "max_tokens": "--max-tokens",
    "load_wait": "--load-wait",
}

_debug = False


class Application(TyperGroup):
    """Runs a command and reports every way in which it can fail."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """As typer's, but errors are ours, and it always exits."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            code = CANCELLED
        except BrokenPipeError:
            # Whoever read our output went away, as `head` does. The interpreter would
            # complain once more when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = FAILED
        except Exception as error:
            code = report(error)
        sys.exit(code if isinstance(code, int) else 0)


def set_up(*, verbose: bool, debug: bool) -> None:
    """Apply the options that stand before the command."""
    global _debug
    _debug = debug
    if verbose:
        from rich.logging import RichHandler

        handler = RichHandler(
            console=err(), show_path=False, log_time_format="%H:%M:%S", keywords=[]
        )
        logger = logging.getLogger("mlx_guarded_llm")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def report(error: Exception) -> int:
    """Tell of an error on stderr. Returns the exit code."""
    if _debug:
        err().print_exception()
    if isinstance(error, GuardedLLMError):
        # Its subclasses are about the model or the machine, not about the command line.
        show_error(_spelled(error.message), _spelled(error.hint))
        return USAGE if type(error) is InvalidRequest else FAILED
    if hasattr(error, "format_message"):  # typer's own
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "mlx-guarded"
        show_error(error.format_message(), f"{path} --help tells how it is used.")
        return int(getattr(error, "exit_code", USAGE))
    if isinstance(error, OSError):
        show_error(str(error), "")
        return FAILED
    show_error(
        f"{type(error).__name__}: {error}",
        "This is a fault of mlx-guarded-llm; `mlx-guarded --debug ...` shows where.",
    )
    return FAILED


def _spelled(text: str) -> str:
    """A message of the library with its parameters as the command line spells them."""
    for name, option in _SPELLINGS.items():
        text = text.replace(name, option)
    return text


def show_error(message: str, hint: str = "") -> None:
    """Print `error: ...` and, when there is one, `hint: ...`."""
    _line("error", "bold red", message)
    if hint:
        _line("hint", "cyan", hint)


def note(text: str) -> None:
    """Print a remark on stderr that is no error."""
    _line("note", "yellow", text)


def _line(label: str, style: str, text: str) -> None:
    one_line = " ".join(harmless(text).split())
    say(err(), Text.assemble((f"{label}: ", style), one_line))
