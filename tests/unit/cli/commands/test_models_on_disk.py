"""pull, models and rm, on folders and on a cache that is made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_guarded_llm.models import builtin
from mlx_guarded_llm.testing.tiny import make_tiny_model

from ..conftest import Run


@pytest.fixture
def aliases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_tiny_model(tmp_path / "good")
    make_tiny_model(tmp_path / "bad")
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"short")
    file = tmp_path / "models.toml"
    file.write_text('[good]\nmodel = "good"\n[bad]\nmodel = "bad"\n')
    monkeypatch.setenv("MLX_GUARDED_MODELS_FILE", str(file))
    return file


@pytest.fixture
def made(tmp_path: Path, run: Run) -> Path:
    return make_tiny_model(builtin.folder("smollm2-135m", tmp_path / "cache"))


def test_pull_tells_where_it_is(run: Run, made: Path) -> None:
    done = run("pull", "smollm2-135m")
    assert done.exit_code == 0, done.stderr
    assert str(made) in done.stdout.replace("\n", "")
    assert "2,048 tokens of context" in done.stdout


def test_pull_of_nothing(run: Run) -> None:
    done = run("pull", "smolm2")
    assert done.exit_code == 1
    assert "hint: Did you mean smollm2-135m" in done.stderr


def test_pull_of_a_revision_that_cannot_be(run: Run, made: Path) -> None:
    done = run("pull", "smollm2-135m", "--revision", "main")
    assert done.exit_code == 2
    assert "only repositories have revisions" in done.stderr


@pytest.mark.usefixtures("aliases", "made")
def test_models(run: Run) -> None:
    done = run("models", "--memory-budget", "1GB", "--context", "100")
    assert done.exit_code == 0, done.stderr
    fetched, _, rest = done.stdout.partition("To be fetched")
    rows = {line.split()[0]: line.rstrip() for line in fetched.splitlines() if line.strip()}
    assert rows["good"].endswith("yes")
    assert "2,048" in rows["good"]
    assert rows["bad"].endswith("broken")
    assert "broken: bad: " in fetched
    assert "built in" in rows["smollm2-135m"]
    assert "Memory is for 100 tokens of context; the budget of this machine is 1 GB." in fetched
    assert "mlx-community/Qwen3-4B-4bit" in rest


@pytest.mark.usefixtures("aliases")
def test_models_as_json(run: Run) -> None:
    done = run("models", "--memory-budget", "20kB", "--json")
    listed = json.loads(done.stdout)
    assert listed["budget_bytes"] == 20_000
    models = {model["name"]: model for model in listed["models"]}
    assert models["good"]["fits"] is False
    assert models["good"]["memory_bytes"] > 20_000
    assert "error" in models["bad"]
    assert models["bad"]["error"]
    assert models["qwen3-4b"]["path"] is None


def test_models_when_there_are_none(run: Run) -> None:
    assert "No model is on the disk." in run("models", "--memory-budget", "1GB").stdout


def test_rm_asks_and_tells(run: Run, made: Path) -> None:
    refused = run("rm", "smollm2-135m", stdin="n\n")
    assert refused.exit_code == 0
    assert "smollm2-135m stays" in refused.stderr
    assert made.exists()
    agreed = run("rm", "smollm2-135m", stdin="y\n")
    assert agreed.exit_code == 0
    assert "freed" in agreed.stdout
    assert not made.exists()
    assert "was not on the disk" in run("rm", "smollm2-135m", "--yes").stdout


def test_rm_leaves_your_folders_alone(run: Run, tmp_path: Path) -> None:
    own = make_tiny_model(tmp_path / "mine")
    done = run("rm", own, "--yes")
    assert done.exit_code == 2
    assert "is your own folder" in done.stderr
    assert own.exists()


def test_rm_of_nothing(run: Run) -> None:
    assert run("rm", "nope", "--yes").exit_code == 1


def test_ctrl_c_in_a_pull_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(builtin, "make", interrupted)
    done = run("pull", "smollm2-135m")
    assert done.exit_code == 130
    assert "note: cancelled." in done.stderr
