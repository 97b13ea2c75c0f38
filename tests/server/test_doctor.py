"""`mlx-guarded doctor` asks a real server why something waits there."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from mlx_guarded_llm import Backend
from mlx_guarded_llm.cli.app import app
from tests._remote import serving
from tests.conftest import MakeModel


def test_two_models_that_take_turns(tiny: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    a, b = (tiny(hidden_size=256, seed=seed) for seed in range(2))
    with Backend(isolation="thread", memory_budget="21MB", prefix_cache=0) as backend:
        for name in (a, b) * 3:
            backend.generate(name, "Hi", max_tokens=2)
        with serving(backend) as url:
            done = CliRunner().invoke(app, ["doctor", "--url", url])
    assert done.exit_code == 1, done.stdout
    assert "ok      queue     0 running, 0 waiting" in done.stdout
    assert "push each other out of memory" in done.stdout
    assert "of 6 answers" in done.stdout


def test_a_server_that_does_not_answer() -> None:
    done = CliRunner().invoke(app, ["doctor", "--url", "http://127.0.0.1:9"])
    assert done.exit_code == 1
    assert "problem server" in done.stdout
