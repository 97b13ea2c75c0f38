from __future__ import annotations

import subprocess
import sys

import pytest

from mlx_guarded_llm import __version__

from .conftest import Run

LOCAL = ("serve", "config", "demo", "doctor", "trace", "pull", "rm")
EITHER = ("run", "chat", "embed", "models")
REMOTE = (
    *("status", "stop", "load", "unload", "unpin", "forgive"),
    *("cancel", "explain", "timeline", "events"),
)
COMMANDS = (*LOCAL, *EITHER, *REMOTE)


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


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--url", "--local"])
def test_a_command_that_asks_no_server_says_so(run: Run, command: str, option: str) -> None:
    done = run(command, option, "http://127.0.0.1:9")
    assert done.exit_code in (1, 2)
    refused = {LOCAL: ("is about this machine", option), REMOTE: ("is about a server", "--local")}
    for commands, (words, of) in refused.items():
        assert (words in done.stderr) == (command in commands and option == of)
    assert "No such option" not in done.stderr


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
