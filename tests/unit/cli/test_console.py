from __future__ import annotations

import io

import pytest
from rich.console import Console

from mlx_guarded_llm.cli import console
from mlx_guarded_llm.cli.progress import ProgressLine
from mlx_guarded_llm.models import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_model_cannot_drive_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    console.write("a\x1b[2J\x07b\nc\td\u202ee\r\x9b1m")
    assert terminal.getvalue() == "a[2Jb\nc\tde1m"


def test_a_pipe_gets_what_the_model_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stdout", pipe)
    console.write("a\x1b[2J")
    assert pipe.getvalue() == "a\x1b[2J"


def test_short_names() -> None:
    assert console.short("/models/deep/phi3") == "phi3"
    assert console.short("org/repo") == "org/repo"


def shown(*steps: Progress) -> str:
    terminal = Terminal()
    with ProgressLine(
        "phi3", console=Console(file=terminal, force_terminal=True, width=90)
    ) as line:
        for step in steps:
            line.update(step)
            line._bars.refresh()
    line.update(Progress("load", 1, 2))
    return terminal.getvalue()


def test_progress_in_bytes_and_tokens() -> None:
    assert "downloading phi3" in shown(Progress("download", 5_000_000, 20_000_000))
    assert "5 MB of 20 MB" in shown(Progress("download", 5_000_000, 20_000_000))
    assert "reading the prompt phi3" in shown(Progress("prefill", 512, 1024))
    assert "512 of 1,024 tokens" in shown(Progress("load", 1, 2), Progress("prefill", 512, 1024))
    assert "5 MB" in shown(Progress("import", 5_000_000, None))


def test_no_progress_where_there_is_no_terminal() -> None:
    pipe = io.StringIO()
    with ProgressLine("phi3", console=Console(file=pipe)) as line:
        line.update(Progress("download", 5, 20))
    assert pipe.getvalue() == ""
