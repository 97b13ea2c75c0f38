"""Tab completion, as a shell asks for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlx_guarded_llm.cli.shell_completion import model_names
from mlx_guarded_llm.testing.tiny import make_tiny_model

_ASK = """
import sys
from mlx_guarded_llm.cli import main

try:
    main()
finally:
    print({"mlx", "mlx_lm", "transformers"} & set(sys.modules), file=sys.stderr)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "models.toml"
    file.write_text('[mine]\nmodel = "org/repo"')
    monkeypatch.setenv("MLX_GUARDED_MODELS_FILE", str(file))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "models--org--a-model").mkdir(parents=True)
    (tmp_path / "hub" / "datasets--org--data").mkdir()
    make_tiny_model(tmp_path / "folders" / "m1")
    return tmp_path


@pytest.mark.parametrize(
    ("begun", "names"),
    [
        ("mi", ["mistral-7b", "mine"]),
        ("org", ["org/a-model"]),
        ("org/a", ["org/a-model"]),
        ("fold", ["folders/"]),
        ("./folders/", ["./folders/m1/"]),
        ("nothing/there", []),
        ("~nobody-of-this-name/x", []),
    ],
)
@pytest.mark.usefixtures("home")
def test_what_there_is(begun: str, names: list[str]) -> None:
    assert model_names(begun) == names


def test_a_broken_aliases_file_is_no_error_in_a_shell(home: Path) -> None:
    (home / "models.toml").write_text("[")
    assert model_names("org") == ["org/a-model"]
    assert {"mine"}.isdisjoint(model_names(""))


@pytest.mark.parametrize("command", ["run", "chat", "pull", "rm"])
def test_the_shell_is_answered_without_mlx(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ASK],
        env={
            "_MLX_GUARDED_COMPLETE": "complete_bash",
            "COMP_WORDS": f"mlx-guarded {command} smollm2-135m-",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split(), done.stderr.strip()) == (["smollm2-135m-bf16"], "set()")
