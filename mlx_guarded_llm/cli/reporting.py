"""Errors and notes on stderr, and the exit codes.

An error has one line for what happened, one for what to do, and one that says where to read more.

0    done                      2    the command line is wrong
1    failed                    130  Ctrl-C
"""

from __future__ import annotations

import logging
from typing import Any

from rich.text import Text

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


def set_up(*, verbose: bool, debug: bool) -> None:
    """Apply `--verbose` and `--debug`."""
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
    """Print an error on stderr. Returns the exit code."""
    if _debug:
        err().print_exception()
    if isinstance(error, GuardedLLMError):
        # A subclass is about the model or the machine, not about the command line.
        # What the command line has wrong, its --help tells.
        more = "" if type(error) is InvalidRequest else error.docs
        show_error(_spelled(error.message), _spelled(error.hint), more)
        return USAGE if type(error) is InvalidRequest else FAILED
    if hasattr(error, "format_message"):  # typer's own
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "mlx-guarded"
        said = _about_servers(context, getattr(error, "option_name", ""))
        show_error(said or error.format_message(), f"{path} --help tells how it is used.")
        return int(getattr(error, "exit_code", USAGE))
    if isinstance(error, OSError):
        show_error(str(error), "")
        return FAILED
    show_error(
        f"{type(error).__name__}: {error}",
        "This is a fault of mlx-guarded-llm; `mlx-guarded --debug ...` shows where.",
    )
    return FAILED


def _about_servers(context: Any, option: str) -> str:
    """Why a command has no --url or no --local; "" if it is about another option."""
    if context is None or option not in ("--url", "--local"):
        return ""
    if any(parameter.name == "url" for parameter in context.command.params):
        return f"{context.command_path} is about a server, and --local asks none."
    return f"{context.command_path} is about this machine, and asks no server."


def _spelled(text: str) -> str:
    """A message of the library, with its parameters spelled as on the command line."""
    for name, option in _SPELLINGS.items():
        text = text.replace(name, option)
    return text


def show_error(message: str, hint: str = "", docs: str = "") -> None:
    """Print `error: ...` and, as far as they are given, `hint: ...` and `see: ...`."""
    _line("error", "bold red", message)
    if hint:
        _line("hint", "cyan", hint)
    if docs:
        _line("see", "dim", docs)


def note(text: str) -> None:
    """Print a note on stderr."""
    _line("note", "yellow", text)


def _line(label: str, style: str, text: str) -> None:
    one_line = " ".join(harmless(text).split())
    say(err(), Text.assemble((f"{label}: ", style), one_line))
