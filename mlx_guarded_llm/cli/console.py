"""The two consoles, and text that is safe to show on them."""

from __future__ import annotations

import io
import os
import re
import sys
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.text import Text

PIPE_WIDTH = 100  # columns where there is no terminal

# What a terminal would obey or not show: control characters except \n and \t, and the marks
# that change the direction of text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@cache
def out() -> Console:
    """The console on stdout: results."""
    return _console(stderr=False)


@cache
def err() -> Console:
    """The console on stderr: progress, notes, errors."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def show_any_character() -> None:
    """Replace characters that stdout and stderr cannot encode, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def write(text: str, style: str = "") -> None:
    """Write a piece of an answer to stdout at once. A pipe gets it unchanged."""
    stream = sys.stdout
    stream.write(styled(harmless(text), style) if stream.isatty() else text)
    stream.flush()


def styled(text: str, style: str) -> str:
    """A text for a terminal, with the codes of a style around it."""
    if not style:
        return text
    with out().capture() as captured:
        out().print(Text(text, style=style, tab_size=8), end="", soft_wrap=True)
    return captured.get()


def say(console: Console, text: str | Text) -> None:
    """Print a sentence: wrapped for a terminal, on one line for a pipe."""
    console.print(text, soft_wrap=not console.is_terminal)


def harmless(text: str) -> str:
    """A model's text without characters that control a terminal."""
    return _CONTROL.sub("", text)


def short(model: str) -> str:
    """A model's name for a narrow place: the last part of a folder."""
    return Path(model).name if Path(model).is_absolute() else model
