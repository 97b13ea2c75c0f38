"""`mlx-guarded chat` on a real terminal: its status line, of which nothing stays."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests._terminal import SCRIPT, Terminal
from tests.conftest import MakeModel

from .conftest import Running, Serve

pytestmark = pytest.mark.slow  # each starts a program

WIDE = "日本語の長い答えです。" * 3 + "Paris, and no other.\n\nAnd a second paragraph of it."
# The command line, whose backend is a server's.
ASK_A_SERVER = """
import sys
from mlx_guarded_llm import Backend
from mlx_guarded_llm.cli import backends
from mlx_guarded_llm.cli.app import main
url = sys.argv.pop(1)
backends.open_backend = lambda **options: Backend.connect(url)
main()
"""

Chat = Callable[..., Terminal]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    own = {
        "MLX_GUARDED_CACHE_DIR": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hub"),
        "TERM": "xterm-256color",
        "INPUTRC": os.devnull,
    }
    return {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | own


@pytest.fixture
def chat(environment: dict[str, str]) -> Iterator[Chat]:
    """Start a chat: `chat("paris", at=running, columns=30)`, or with a backend of its own."""
    open_: list[Terminal] = []

    def start(model: str, *, at: Running | None = None, columns: int = 80, **more: str) -> Terminal:
        program = [SCRIPT] if at is None else [sys.executable, "-c", ASK_A_SERVER, at.url]
        terminal = Terminal([*program, "chat", model], environment | more, columns=columns)
        open_.append(terminal)
        return terminal

    yield start
    for terminal in open_:
        terminal.kill()


@pytest.fixture
def served(serve: Serve, tiny: MakeModel, scripted: MakeModel) -> Running:
    noise = tiny(hidden_size=256, layers=6, context_window=8192)
    return serve(
        options={"max_active": 1},
        models={"noise": noise, "wide": scripted(WIDE), "paris": scripted("Paris.")},
    )


def prompt(lines: list[str]) -> bool:
    return lines[-1:] == [">"]


def test_it_tells_whom_it_waits_for(served: Running, chat: Chat) -> None:
    with served.backend.stream("noise", "Go on", max_tokens=8000) as noise:
        next(noise)
        terminal = chat("paris", at=served)
        terminal.until_shown("paris waits to be loaded behind noise")
    terminal.until(prompt)
    assert not any("waits" in line for line in terminal.lines)
    with served.backend.stream("noise", "Go on", max_tokens=8000) as noise:
        next(noise)
        terminal.type("/model noise")
        terminal.until_shown("noise is ready")
        terminal.until(prompt)
        terminal.type("Hi")
        terminal.until_shown("noise is queued behind noise")
    terminal.until_shown("tokens/s")
    terminal.interrupt()
    terminal.until_shown("the answer is not complete")
    terminal.until(prompt)
    assert not any("tokens/s" in line or "queued" in line for line in terminal.lines)
    terminal.type("/quit")
    assert terminal.end() == 0


@pytest.mark.parametrize("columns", [11, 22, 80])
def test_the_answer_is_what_it_would_be_without(served: Running, chat: Chat, columns: int) -> None:
    terminal = chat("wide", at=served, columns=columns)
    terminal.until(prompt)
    terminal.type("Hi")
    terminal.until(lambda lines: prompt(lines) and "> Hi" in lines)
    shown = terminal.lines[terminal.lines.index("> Hi") + 1 : -1]
    assert "".join(shown).replace(" ", "") == WIDE.replace(" ", "").replace("\n", "")


def test_a_terminal_that_cannot_move_its_cursor_gets_none(served: Running, chat: Chat) -> None:
    terminal = chat("paris", at=served, TERM="dumb")
    terminal.until(prompt)
    terminal.type("Hi")
    terminal.until_shown("Paris.")
    terminal.type("/quit")
    assert terminal.end() == 0
    assert b"\x1b" not in terminal.raw


def test_no_colours_are_none(served: Running, chat: Chat) -> None:
    terminal = chat("noise", at=served, NO_COLOR="1")
    terminal.until(prompt)
    terminal.type("Hi")
    terminal.until_shown("tokens/s")
    terminal.interrupt()
    terminal.until(prompt)
    assert not re.search(rb"\x1b\[(3|4|9|10)[0-9]", terminal.raw)


def test_a_crash_is_told_and_the_answer_goes_on(tiny: MakeModel, chat: Chat) -> None:
    terminal = chat(tiny(hidden_size=256, layers=6, context_window=8192))
    terminal.until_shown("is ready")
    terminal.until(prompt)
    terminal.type("Hi")
    terminal.until_shown("tokens/s")
    [worker] = [
        child
        for child in psutil.Process(terminal.pid).children()
        if "worker" in str(child.cmdline())
    ]
    os.kill(worker.pid, signal.SIGKILL)
    terminal.until_shown("resumed after a crash")
    terminal.interrupt()
    terminal.until_shown("the answer is not complete")
    terminal.until_shown("note: resumed after a crash.")
    terminal.until(prompt)
    terminal.type("/quit")
    assert terminal.end() == 0
