"""The two consoles, and text that is safe to show on them."""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.text import Text

PIPE_WIDTH = 100  # columns where there is no terminal to ask

# What a terminal would obey, or show as nothing: control characters but not \n and \t,
# and the marks that turn the direction of text.
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


def write(text: str) -> None:
    """Write a piece of an answer to stdout at once; a pipe gets it byte for byte."""
    stream = sys.stdout
    stream.write(harmless(text) if stream.isatty() else text)
    stream.flush()


def say(console: Console, text: str | Text) -> None:
    """Print a sentence: wrapped for a terminal, on one line for a pipe."""
    console.print(text, soft_wrap=not console.is_terminal)


def harmless(text: str) -> str:
    """A model's text without what could drive a terminal."""
    return _CONTROL.sub("", text)


def short(model: str) -> str:
    """A model's name for a narrow place: of a folder, the last part."""
    return Path(model).name if Path(model).is_absolute() else model
