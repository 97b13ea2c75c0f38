"""`mlx-guarded serve --background`, `status` and `stop`, as processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryDirectory

import pytest
from typer.testing import CliRunner, Result

from mlx_guarded_llm import Backend, default_backend
from mlx_guarded_llm.backend import runtime_folder, shared_server
from mlx_guarded_llm.cli.app import app
from mlx_guarded_llm.errors import InvalidRequest, ServerUnavailable
from tests.conftest import MakeModel

from ._wait import until
from .conftest import ANSWER

SCRIPT = Path(sys.executable).with_name("mlx-guarded")
Command = Callable[..., Result]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of the shared server of this test alone; what still runs at the end is killed."""
    with TemporaryDirectory(prefix="run-") as folder:
        monkeypatch.setenv(runtime_folder.VARIABLE, folder)
        monkeypatch.setenv("MLX_GUARDED_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("COLUMNS", "200")
        yield Path(folder)
        entry = shared_server.running()
        if entry is not None:
            os.kill(entry.pid, signal.SIGKILL)
            until(lambda: shared_server.running() is None)


@pytest.fixture
def command(place: Path) -> Command:
    """Give a command: `command("status", "--json")`."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments])

    return run


@pytest.fixture
def endless(tiny: MakeModel) -> str:
    """Its answers last for seconds."""
    return tiny(hidden_size=256, layers=6, context_window=8192)


def pid() -> int:
    entry = shared_server.running()
    assert entry is not None
    return entry.pid


def test_it_is_found_used_and_ended(
    command: Command,
    place: Path,
    scripted: MakeModel,
    endless: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    none = command("status", "--json")
    assert (none.exit_code, json.loads(none.stdout)["running"]) == (1, False)
    assert command("stop").exit_code == 0

    begun = command("serve", "--background", "--model", f"paris={scripted(ANSWER)}")
    assert begun.exit_code == 0, begun.stderr
    assert f"at unix://{place}/server.sock" in begun.stdout
    assert "Try: curl --unix-socket" in begun.stdout and "server.log" in begun.stdout
    assert os.getsid(pid()) == pid(), "the end of this session would end it"
    again = command("serve", "--background")
    assert again.exit_code == 1 and f"runs already (process {pid()}" in again.stderr

    # Without a word about a server: any model, by its folder, and one by its name there.
    monkeypatch.setattr("mlx_guarded_llm.backend.default_backend._shared", None)
    with default_backend() as backend:
        assert not isinstance(backend, Backend)
        assert backend.generate(scripted("By its folder."), "Hello").text == "By its folder."
        with pytest.raises(InvalidRequest, match="a server's"):
            default_backend(load_wait=5)
        with pytest.raises(InvalidRequest, match="share"):
            default_backend(share=False)
        assert default_backend(share=True) is backend
    with default_backend(share=False, isolation="thread") as own:
        assert isinstance(own, Backend)
    answer = command("run", "paris", "Hello")
    assert (answer.exit_code, answer.stdout) == (0, f"{ANSWER}\n"), answer.stderr

    shown = command("status", "--json")
    told = json.loads(shown.stdout)
    assert shown.exit_code == 0 and told["pid"] == pid()
    assert told["urls"] == [f"unix://{place}/server.sock"]
    assert 0 < told["memory_bytes"] <= told["memory_budget_bytes"]
    assert "paris" in {model["name"] for model in told["models"]}
    said = command("status").stdout
    assert "paris: resident" in said and "0 running, 0 waiting" in said

    with Backend.connect(f"unix://{place}/server.sock") as backend:
        stream = backend.stream(endless, "Go on", max_tokens=300)
        next(stream)
        impatient = command("stop", "--timeout", "0")
        assert impatient.exit_code == 1 and "--now" in impatient.stderr
        *_, last = stream
    assert last.finish_reason == "length"
    assert command("stop").exit_code == 0
    assert command("status").exit_code == 1
    assert not (place / "server.sock").exists()


def test_of_two_starts_one_wins_and_after_a_kill_it_starts_again(
    command: Command, place: Path, endless: str
) -> None:
    starts = [
        subprocess.Popen([SCRIPT, "serve", "--background"], text=True, stdout=PIPE, stderr=PIPE)
        for _ in range(2)
    ]
    said = [start.communicate() for start in starts]
    codes = [start.returncode for start in starts]
    assert sorted(codes) == [0, 1], said
    assert "runs already" in said[codes.index(1)][1]
    first = pid()
    assert f"Process {first}" in said[codes.index(0)][0]

    os.kill(first, signal.SIGKILL)
    until(lambda: shared_server.running() is None)
    assert (place / "server.sock").is_socket(), "it was left behind"
    assert shared_server.address() is None
    assert command("status").exit_code == 1
    assert command("stop").exit_code == 0

    assert command("serve", "--background", "--port", "0").exit_code == 0
    assert pid() != first
    with Backend.connect(f"unix://{place}/server.sock") as backend:
        stream = backend.stream(endless, "Go on", max_tokens=8000)
        next(stream)
        now = command("stop", "--now")
        assert now.exit_code == 0, now.stderr
        with pytest.raises(ServerUnavailable):
            list(stream)
    assert shared_server.running() is None


def test_a_start_that_fails_says_why(command: Command, place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("serve", "--background", "--port", str(port))
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: 127.0.0.1:{port} is not available")
    assert shared_server.running() is None and not (place / "server.sock").exists()


def test_one_that_hangs_is_ended_all_the_same(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_guarded_llm.cli.commands.stop.HASTE", 0.0)
    assert command("serve", "--background").exit_code == 0
    os.kill(pid(), signal.SIGSTOP)
    assert command("stop", "--now").exit_code == 0
    assert shared_server.running() is None
