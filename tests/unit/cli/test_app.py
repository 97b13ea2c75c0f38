from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

from mlx_guarded_llm import __version__
from mlx_guarded_llm.cli import commands, overview
from mlx_guarded_llm.cli.overview import PANELS

from .conftest import Run

LOCAL = ("serve", "config", "demo", "fit", "trace", "pull", "rm")
EITHER = ("run", "chat", "embed", "models", "doctor")
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
    for of_this_kind, (words, of) in refused.items():
        assert (words in done.stderr) == (command in of_this_kind and option == of)
    assert "No such option" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_overview_says_of_a_command_what_its_own_help_says_first(command: str) -> None:
    function = getattr(import_module(f"mlx_guarded_llm.cli.commands.{command}"), command)
    said = {name: text for panel in PANELS.values() for name, text in panel.items()}
    paragraph = " ".join(str(function.__doc__).split("\n\n")[0].split())
    assert said[command] == paragraph


def test_every_command_is_in_the_overview() -> None:
    modules = {module.name for module in pkgutil.iter_modules(commands.__path__)}
    assert modules == {*overview.COMMANDS} == {*COMMANDS}


def test_the_overview_imports_no_command() -> None:
    code = (
        "import sys\n"
        "from mlx_guarded_llm.cli import main\n"
        "sys.argv[1:] = ['--help']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(len(sys.modules), *sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0
    count, *names = done.stderr.split()
    assert not {"rich.markdown", "pygments", "typer.rich_utils"}.intersection(names)
    assert not [name for name in names if name.startswith("mlx_guarded_llm.cli.commands")]
    assert int(count) < 300, "it comes at once only as long as little is imported"


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
