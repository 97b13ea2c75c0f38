from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest

from mlx_guarded_llm.testing.tiny import make_tiny_model

from ..conftest import Run


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    make_tiny_model(tmp_path / "small")
    make_tiny_model(tmp_path / "large", hidden_size=256, layers=8, context_window=32768)
    file = tmp_path / "models.toml"
    file.write_text('[small]\nmodel = "small"\n[large]\nmodel = "large"\n')
    monkeypatch.setenv("MLX_GUARDED_MODELS_FILE", str(file))
    return "small", "large"


def test_two_that_fit(run: Run, two: tuple[str, str]) -> None:
    done = run("fit", *two, "--memory", "16GB", "--context", "1000")
    assert done.exit_code == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert all(rows[name].rstrip().endswith("yes") for name in (*two, "together"))
    assert "The budget of a Mac with 16GB is 10.7 GB" in done.stdout
    assert "All fit together, up to 32,768 tokens" in done.stdout


def test_two_that_do_not(run: Run, two: tuple[str, str]) -> None:
    asked = ("fit", *two, "--context", "8192", "--memory-budget")
    done = run(*asked, "90MB")
    assert done.exit_code == 1
    assert "Together they do not fit" in done.stdout
    assert "- a shorter context" in done.stdout
    assert "kv_bits=8" in done.stdout
    assert "large does not fit even alone" in done.stdout
    assert "small takes at most 2,048 tokens" in done.stdout
    done = run(*asked, "106MB")
    assert done.exit_code == 1
    assert "each fits alone" in done.stdout


def test_as_json(run: Run, two: tuple[str, str]) -> None:
    done = run("fit", *two, "--memory-budget", "90MB", "--context", "8192", "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    small, large = found["models"]
    assert (small["fits"], large["fits"], found["together"]["fits"]) == (True, False, False)
    assert found["kv_bits_that_fit"] == 8
    again = run("fit", *two, "--memory-budget", "90MB", "--context", f"{found['longest_context']}")
    assert again.exit_code == 0, again.stdout
    least = f"{found['least_budget_bytes'] / 1000:.3f}kB"
    assert run("fit", *two, "--context", "8192", "--memory-budget", least).exit_code == 0


def test_one_whose_size_cannot_be_told(
    run: Run, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    done = run("fit", "small", "org/repo", "smol", "--memory", "16GB")
    assert done.exit_code == 1
    assert "Without org/repo and smol: It fits" in done.stdout.replace("\n", " ")
    assert "error: org/repo: " in done.stderr
    assert "hub is out of reach" in done.stderr
    assert "error: smol: " in done.stderr


def test_a_machine_is_named_in_one_way(run: Run, two: tuple[str, str]) -> None:
    done = run("fit", *two, "--memory", "16GB", "--memory-budget", "1GB")
    assert done.exit_code == 2
    assert run("fit", *two, "--memory", "much").exit_code == 2
    assert run("fit").exit_code == 2
