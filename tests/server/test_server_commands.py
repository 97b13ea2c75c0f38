"""The commands about a server, against your shared server, which is a process of its own.

It listens at its socket, and at a port with keys.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryDirectory

import httpx
import pytest
from typer.testing import CliRunner, Result

from mlx_guarded_llm import Backend, default_backend
from mlx_guarded_llm.backend import BaseBackend, runtime_folder, shared_server
from mlx_guarded_llm.backend.remote import backend as remote
from mlx_guarded_llm.cli.app import app
from mlx_guarded_llm.errors import InvalidRequest, ServerUnavailable
from mlx_guarded_llm.server.log_lines import MOST
from tests.conftest import MakeModel

from ._wait import until
from .conftest import ANSWER
from .test_command import SCRIPT, Start, environment, start, where  # noqa: F401

LONG = 60_000  # tokens: such an answer lasts for minutes
KEYS = "plain PLAIN paris\nops OPS * admin\n"


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def said(*arguments: str) -> str:
    """What a command says that succeeds."""
    done = command(*arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Shared:
    """The shared server.

    Attributes:
        place: its folder.
        socket: the address of its socket.
        port: that of its port.
        folder: of a model that its settings do not name.
    """

    place: Path
    socket: str
    port: str
    folder: str


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
    scripted: MakeModel,
    tiny: MakeModel,
    embedder: MakeModel,
) -> Iterator[Shared]:
    cache = tmp_path_factory.mktemp("cache")
    (keys := cache / "keys").write_text(KEYS)
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="run-") as place:
        patch.setenv(runtime_folder.VARIABLE, place)
        patch.setenv("MLX_GUARDED_CACHE_DIR", str(cache))
        patch.setenv("HF_HOME", str(cache / "hub"))
        patch.setenv("COLUMNS", "200")
        endless = tiny(hidden_size=256, layers=6, context_window=65_536)
        flags = ["--port", "0", "--key-file", str(keys), "--log-level", "info"]
        for name, folder in (
            ("paris", scripted(ANSWER)),
            ("endless", endless),
            ("vectors", embedder()),
        ):
            flags += ["--model", f"{name}={folder}"]
        said("serve", "--background", *flags)
        socket, port = json.loads(said("status", "--json"))["urls"]
        yield Shared(Path(place), socket, port, scripted("By its folder."))
        said("stop", "--now")


@pytest.fixture
def backend(shared: Shared) -> Iterator[BaseBackend]:
    """A program of yours, which knows of no key."""
    with Backend.connect(shared.socket) as backend:
        yield backend


@pytest.mark.usefixtures("shared")
def test_models_are_loaded_pinned_and_unloaded() -> None:
    assert said("load", "paris", "--pin").startswith("paris is loaded, pinned: ")
    (told,) = [m for m in json.loads(said("models", "--json"))["models"] if m["name"] == "paris"]
    assert (told["state"], told["pinned"]) == ("resident", True)
    assert told["weight_bytes"] > 0 and told["memory_bytes"] > 0
    assert "paris: resident, pinned" in said("status")
    shown = said("models")
    assert "resident, pinned" in shown and "unloaded" in shown
    assert "smollm2-135m" in shown.split("Fetched when they are first used: ")[1]

    assert said("unpin", "paris") == "paris may be evicted\n"
    assert said("unpin", "paris") == "paris was not pinned\n"
    assert said("unload", "paris") == "paris is unloaded\n"
    assert said("unload", "paris") == "paris was not loaded\n"
    assert said("forgive", "paris") == "paris was not in quarantine\n"
    loaded = json.loads(said("load", "paris", "--context-window", "64", "--json"))
    assert (loaded["state"], loaded["context_window"]) == ("resident", 64)
    assert said("unload", "paris") == "paris is unloaded\n"
    none = command("load", "no-such-model")
    assert none.exit_code == 1 and "no-such-model" in none.stderr


@pytest.mark.usefixtures("shared")
def test_models_of_this_machine_are_listed_if_that_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for option in (["--local"], ["--context", "100"], ["--memory-budget", "1GB"]):
        assert "To be fetched" in said("models", *option), option
    monkeypatch.setenv("MLX_GUARDED_URL", "http://127.0.0.1:9")
    assert "To be fetched" in said("models", "--local")
    refused = command("models", "--context", "100")
    assert refused.exit_code == 2 and "MLX_GUARDED_URL" in refused.stderr


@pytest.mark.usefixtures("shared")
def test_vectors() -> None:
    rows = [json.loads(line) for line in said("embed", "vectors", "a cat", "a dog").splitlines()]
    whole = json.loads(said("embed", "vectors", "a cat", "a dog", "--json"))
    assert whole["vectors"] == rows and len(rows) == 2
    assert sum(value * value for value in rows[0]) == pytest.approx(1.0, abs=1e-3)
    assert whole["usage"]["prompt_tokens"] > 0
    assert whole["guard"]["served_model"] == "vectors"
    lines = CliRunner().invoke(app, ["embed", "vectors", "-"], input="a cat\na dog\n")
    assert [json.loads(line) for line in lines.stdout.splitlines()] == rows
    assert CliRunner().invoke(app, ["embed", "vectors", "-"], input="").exit_code == 2


def test_a_request_and_what_waits_for_it(
    shared: Shared, backend: BaseBackend, tmp_path: Path
) -> None:
    backend.unload("paris")
    stream = backend.stream("endless", "Go on", max_tokens=LONG, request_id="the-long-one")
    next(stream)
    loading = threading.Thread(target=backend.load, args=("paris",))
    loading.start()
    until(lambda: {m.name: m.state for m in backend.models()}.get("paris") == "deferred")
    told = json.loads(said("status", "--json"))
    assert [request["request_id"] for request in told["requests"]] == ["the-long-one"]
    assert {m["name"]: m["state"] for m in told["models"]}["paris"] == "deferred"
    with httpx.Client(base_url=shared.port, headers={"x-api-key": "OPS"}, timeout=60) as client:
        listed = client.get("/v1/models/paris").json()
        assert (listed["state"], listed["status"]["value"]) == ("deferred", "loading")
    shown = said("status")
    assert "paris: deferred" in shown and "the-long-one: endless " in shown
    assert said("explain", "the-long-one").startswith("Request the-long-one asked for endless.")
    latest = json.loads(said("explain", "--json"))
    assert latest["request_id"] == "the-long-one"
    assert said("cancel", "the-long-one") == "the-long-one is cancelled\n"
    *_, last = stream
    assert last.finish_reason == "cancelled"
    loading.join()
    again = command("cancel", "the-long-one")
    assert again.exit_code == 2 and "there is no request 'the-long-one'" in again.stderr
    assert command("explain", "nobody").exit_code == 2

    chart = said("timeline", "--trace", str(tmp_path / "trace.json"))
    assert "endless" in chart and "Nothing overlapped: " in chart
    assert "endless" in said("trace", str(tmp_path / "trace.json"))
    lines = [json.loads(line) for line in said("events", "--last", "3", "--json").splitlines()]
    assert len(lines) == 3 and all({"at", "kind", "time"} <= line.keys() for line in lines)
    assert "load of paris deferred (generations) behind the-long-one" in said("events")


def test_requests_of_other_clients_are_cancelled_too(shared: Shared) -> None:
    body = {
        "model": "endless",
        "messages": [{"role": "user", "content": "Go on"}],
        "max_tokens": LONG,
        "stream": True,
    }
    with (
        httpx.Client(base_url=shared.port, headers={"x-api-key": "OPS"}, timeout=600) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as reply,
    ):
        name = reply.headers["x-guard-request-id"]
        until(lambda: name in said("status"))
        assert said("cancel", name) == f"{name} is cancelled\n"
        assert "data: [DONE]" in list(reply.iter_lines())


def test_events_as_they_happen(shared: Shared, backend: BaseBackend) -> None:
    backend.load("paris")
    watching: list[str | Path] = [SCRIPT, "events", "--follow", "--last", "1"]
    with subprocess.Popen(watching, text=True, stdout=PIPE, stderr=PIPE) as pipe:
        assert pipe.stdout is not None
        try:
            seen = [pipe.stdout.readline()]
            backend.unload("paris")
            while "unload of paris finished" not in seen[-1]:
                seen.append(pipe.stdout.readline())
                assert seen[-1], seen
            pipe.send_signal(signal.SIGINT)
            _, errors = pipe.communicate(timeout=60)
        finally:
            pipe.kill()
    assert pipe.returncode == 130 and "Traceback" not in errors


def test_rights_at_the_socket_and_at_the_port(
    shared: Shared, backend: BaseBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The owner needs no key and may do everything, with every model and option.
    assert backend.generate(shared.folder, "Hello").text == "By its folder."
    assert backend.load("paris", adapter_path=None, context_window=128).context_window == 128
    assert backend.unload("paris", context_window=128)
    assert any(event.model == "paris" for event in backend.events())
    at = ("--url", shared.port)
    monkeypatch.delenv("MLX_GUARDED_KEY", raising=False)
    stranger = command("status", *at)
    assert stranger.exit_code == 1 and "needs a key" in stranger.stderr

    monkeypatch.setenv("MLX_GUARDED_KEY", "PLAIN")
    assert said("run", "paris", "Hello", *at) == f"{ANSWER}\n"
    assert [m["name"] for m in json.loads(said("models", "--json", *at))["models"]] == ["paris"]
    assert json.loads(said("status", "--json", *at))["requests"] == []
    for refused in (["load", "paris"], ["events"], ["timeline"], ["explain"], ["stop"]):
        done = command(*refused, *at)
        assert done.exit_code == 2 and "this key may not do that" in done.stderr, refused
    hidden = command("run", "endless", "Hello", *at)
    assert hidden.exit_code == 1 and "there is no model 'endless'" in hidden.stderr

    monkeypatch.setenv("MLX_GUARDED_KEY", "OPS")
    monkeypatch.setenv("MLX_GUARDED_URL", shared.port)  # as --url
    assert said("load", "paris").startswith("paris is loaded")
    unnamed = command("load", shared.folder)
    assert unnamed.exit_code == 1 and "there is no model" in unnamed.stderr
    option = command("load", "paris", "--revision", "main")
    assert option.exit_code == 2 and "revision" in option.stderr


def test_a_full_log_is_kept_and_another_one_begun(shared: Shared) -> None:
    now, before = shared.place / "server.log", shared.place / "server.log.1"
    with httpx.Client(base_url=shared.port, headers={"x-api-key": "OPS"}, timeout=60) as client:
        until(lambda: client.get(f"/nothing/{'x' * 8000}").is_error and before.exists())
        client.get("/after-that")
        until(lambda: "/after-that" in now.read_text())
    assert MOST < before.stat().st_size < MOST + 20_000 and now.stat().st_size < MOST
    assert now.stat().st_mode & 0o077 == 0, "only for its owner"


def test_one_that_hangs_is_an_error_soon(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_guarded_llm.backend.default_backend._shared", None)
    assert remote.HELLO <= 10.0, "as the docs say"
    monkeypatch.setattr(remote, "HELLO", 0.2)
    entry = shared_server.running()
    assert entry is not None
    os.kill(entry.pid, signal.SIGSTOP)
    try:
        with pytest.raises(ServerUnavailable, match="has said nothing for") as caught:
            default_backend()
        assert "mlx-guarded stop --now" in caught.value.hint
        done = command("status")
        assert done.exit_code == 1 and f"process {entry.pid}" in done.stdout
        assert "has said nothing" in done.stderr
        assert command("run", "paris", "Hello").exit_code == 1
    finally:
        os.kill(entry.pid, signal.SIGCONT)
    monkeypatch.setattr(remote, "HELLO", 300.0)
    with default_backend() as backend:
        assert backend.generate("paris", "Hello").text == ANSWER


def test_without_a_server_they_say_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(runtime_folder.VARIABLE, str(tmp_path))
    for asked in (["load", "paris"], ["events"], ["cancel", "request-1"]):
        done = command(*asked)
        assert done.exit_code == 1 and "mlx-guarded serve --background" in done.stderr, asked


def test_another_version_of_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys\n"
        "from mlx_guarded_llm.backend.remote import frames\n"
        "frames.VERSION += 1\n"
        "from mlx_guarded_llm.cli import main\n"
        "sys.argv = ['mlx-guarded', 'serve', '--share']\n"
        "main()\n"
    )
    monkeypatch.setattr("mlx_guarded_llm.backend.default_backend._shared", None)
    with TemporaryDirectory(prefix="run-") as place:
        monkeypatch.setenv(runtime_folder.VARIABLE, place)
        process = subprocess.Popen([sys.executable, "-c", code], text=True, stdout=PIPE)
        assert process.stdout is not None
        try:
            process.stdout.readline()
            with pytest.raises(InvalidRequest, match="of the protocol") as caught:
                default_backend()
            assert "`mlx-guarded stop`" in caught.value.hint
            done = command("status")
            assert done.exit_code == 1 and f"process {process.pid}" in done.stdout
            assert "of the protocol" in done.stderr
            assert said("stop") == f"Process {process.pid} has ended.\n"
        finally:
            process.kill()
            process.communicate()


def test_a_server_elsewhere_is_stopped(start: Start, tiny: MakeModel) -> None:  # noqa: F811
    endless = tiny(hidden_size=256, layers=6, context_window=65_536)
    process = start("--model", f"endless={endless}")
    url = where(process)
    with Backend.connect(url) as backend:
        stream = backend.stream("endless", "Go on", max_tokens=100)
        next(stream)
        impatient = command("stop", "--url", url, "--timeout", "0")
        assert impatient.exit_code == 1 and "has not ended within 0 s" in impatient.stderr
        *_, last = stream
    assert last.finish_reason == "length", "answers end first"
    assert process.wait() == 0
    process = start("--model", f"endless={endless}")
    assert f"(process {process.pid}) has ended" in said("stop", "--url", where(process))
    assert process.wait() == 0
    gone = command("stop", "--url", "http://127.0.0.1:9")
    assert gone.exit_code == 1 and "does not answer" in gone.stderr
