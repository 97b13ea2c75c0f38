"""A terminal that cannot show a character shows another, and the rest of the answer."""

from __future__ import annotations

import io
import sys

import pytest

from mlx_guarded_llm.cli import reporting
from mlx_guarded_llm.cli.app import app
from mlx_guarded_llm.results import Chunk

from .conftest import FakeBackend, last_chunk

ANSWER = "A café — 東京 🙂 at the corner."


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "shift_jis", "utf-8"])
@pytest.mark.parametrize("arguments", [(), ("--json",), ("--show-guard",)])
def test_an_answer_is_shown_to_its_end(
    backend: FakeBackend,
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
    arguments: tuple[str, ...],
) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(reporting, "_debug", False)
    backend.scripts = [[Chunk(text=ANSWER), last_chunk(requested_model="modèle 東京")]]
    with pytest.raises(SystemExit) as ended:
        app(["run", "tiny", "Where?", *arguments])
    shown = out.buffer.getvalue().decode(encoding)
    assert ended.value.code == 0, err.buffer.getvalue()
    assert ANSWER.encode(encoding, "replace").decode(encoding) in shown
