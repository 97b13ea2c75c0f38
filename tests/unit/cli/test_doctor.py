from __future__ import annotations

from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.cli import checks
from mlx_guarded_llm.errors import EngineDied

from .conftest import Run

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = checks.Check(name="generate", ok=True, text="16 tokens")
    monkeypatch.setattr(checks, "trial", lambda: iter([fine]))


def test_all_is_well(run: Run) -> None:
    done = run("doctor")
    assert done.exit_code == 0, done.stdout
    for name in ("python", "packages", "aliases", "disk", "pip", "generate"):
        assert f"ok      {name}" in done.stdout
    assert "hub" not in done.stdout.replace("huggingface-hub", "")
    assert done.stdout.endswith("All is well.\n")


def test_a_full_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10, 9, 1))
    done = run("doctor")
    assert done.exit_code == 1
    assert "problem disk" in done.stdout
    assert "MLX_GUARDED_CACHE_DIR" in done.stdout
    assert "1 problem found." in done.stdout


def test_a_broken_aliases_file(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text("x")
    monkeypatch.setenv("MLX_GUARDED_MODELS_FILE", str(file))
    done = run("doctor")
    assert done.exit_code == 1
    assert "problem aliases" in done.stdout
    assert "generate" in done.stdout, "the other checks go on"


def test_a_missing_package(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "mlx":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("importlib.metadata.version", version)
    done = run("doctor")
    assert done.exit_code == 1
    assert "mlx not installed" in done.stdout
    assert "mlx-guarded-llm[cpu]" in done.stdout


def test_an_engine_that_does_not_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def open_backend(**_: Any) -> Any:
        raise EngineDied("MLX cannot be used.", hint="Install it.")

    monkeypatch.setattr("mlx_guarded_llm.cli.opening.open_backend", open_backend)
    found = list(checks.trial())
    assert found == [
        checks.Check(name="generate", ok=False, text="MLX cannot be used.", hint="Install it.")
    ]


def test_the_hub_is_asked_only_when_wanted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert run("doctor").exit_code == 0
    done = run("doctor", "--online")
    assert done.exit_code == 1
    assert "problem hub" in done.stdout
    assert "no route" in done.stdout
