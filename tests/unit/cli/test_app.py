from __future__ import annotations

import subprocess
import sys

import pytest

from mlx_guarded_llm import __version__

from .conftest import Run

COMMANDS = ("demo", "run", "chat", "pull", "models", "rm", "doctor", "trace")


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"mlx-guarded-llm {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 0
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert f"mlx-guarded {command}" in done.stdout.split("Usage:")[1].split("\n", 1)[1]


@pytest.mark.parametrize(
    "arguments", [("rnu",), ("run", "tiny"), ("--nope",), ("run", "tiny", "x", "--top-k", "many")]
)
def test_a_wrong_command_line(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: mlx-guarded")


def test_the_command_line_starts_without_mlx() -> None:
    code = (
        "import sys\n"
        "from mlx_guarded_llm.cli.app import app\n"
        "heavy = {'mlx', 'mlx_lm', 'transformers', 'numpy', 'huggingface_hub'} & {*sys.modules}\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
