"""`mlx-guarded serve` and `mlx-guarded config`, as processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_guarded_llm.server import Settings
from mlx_guarded_llm.server.running import listen
from tests.conftest import MakeModel

from .conftest import ANSWER

SCRIPT = Path(sys.executable).with_name("mlx-guarded")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "MLX_GUARDED_CACHE_DIR": str(tmp_path / "cache"), "COLUMNS": "200"}


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    processes = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [SCRIPT, "serve", "--port", "0", *arguments],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def where(process: subprocess.Popen[str]) -> str:
    """What its first line says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"at (http://\S+)/v1", line)
    assert found, (line, process.stderr and process.stderr.read())
    return found[1]


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments], env=environment, text=True, capture_output=True, check=False
    )


def test_it_says_what_it_serves_and_ends_when_asked(start: Start, scripted: MakeModel) -> None:
    process = start("--model", f"paris={scripted(ANSWER)}")
    url = where(process)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(f"Try: curl {url}/v1/chat/completions") and '"paris"' in line
    reply = httpx.get(f"{url}/v1/models", timeout=60)
    assert [model["id"] for model in reply.json()["data"]] == ["paris"]
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_piece_waits_for_the_acknowledgement_of_another(host: str) -> None:
    with (
        listen(Settings(host=host, port=0)) as sock,
        socket.create_connection(sock.getsockname()[:2]),
    ):
        connection, _ = sock.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_unix_socket(start: Start, scripted: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "s"
    process = start("--model", f"paris={scripted(ANSWER)}", "--uds", str(path))
    assert process.stdout is not None
    assert f"unix://{path}" in process.stdout.readline()
    assert path.stat().st_mode & 0o777 == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=60) as client:
        assert client.get("http://localhost/health").json()["status"] == "ok"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not path.exists()


@pytest.fixture
def endless(tiny: MakeModel) -> str:
    """Its answers last for seconds."""
    return tiny(hidden_size=256, layers=6, context_window=8192)


def test_a_model_that_another_server_runs(
    start: Start,
    environment: dict[str, str],
    scripted: MakeModel,
    endless: str,
    tmp_path: Path,
) -> None:
    """Two servers, as processes: one answers for the other, until it dies in the middle."""
    (keys := tmp_path / "keys").write_text("front sk-hidden *\n")
    models = ("--model", f"paris={scripted(ANSWER)}", "--model", f"endless={endless}")
    behind = start("--key-file", str(keys), *models)
    url = where(behind)
    (file := tmp_path / "front.toml").write_text(
        "".join(
            f'[models.{name}]\nurl = "{url}/v1"\nkey_env = "FAR_KEY"\n{more}\n'
            for name, more in {
                "paris": 'fallbacks = ["near"]\non_fallback = "mark"\nretry = { attempts = 1 }',
                "endless": "",
            }.items()
        )
        + f"[models.near]\nmodel = {json.dumps(scripted('Near it is.'))}\n"
    )
    environment["FAR_KEY"] = "sk-hidden"
    told = run(environment, "config", "--config", str(file))
    assert "FAR_KEY" in told.stdout and "sk-hidden" not in told.stdout + told.stderr
    front = where(start("--config", str(file)))
    asked = {"model": "paris", "messages": [{"role": "user", "content": "Where?"}]}
    reply = httpx.post(f"{front}/v1/chat/completions", json=asked, timeout=60).json()
    assert reply["choices"][0]["message"]["content"] == ANSWER
    assert reply["guard"]["served_model"] == "paris" and not reply["guard"]["fallback"]
    with httpx.stream(**ask(front, max_tokens=8000), timeout=60) as streamed:
        lines = streamed.iter_lines()
        while '"content":' not in next(lines):
            pass
        behind.kill()
        rest = [line for line in lines if line.startswith("data: ")]
    assert '"error":' in rest[-1] and "server_unavailable" in rest[-1]
    assert not [line for line in rest if '"finish_reason":"' in line]
    reply = httpx.post(f"{front}/v1/chat/completions", json=asked, timeout=60).json()
    assert reply["choices"][0]["message"]["content"] == "Near it is."
    assert reply["guard"]["fallback"] and reply["guard"]["served_model"] == "near"


def ask(url: str, **options: Any) -> dict[str, Any]:
    body = {"model": "endless", "messages": [{"role": "user", "content": "Go on"}], "stream": True}
    return {"method": "POST", "url": f"{url}/v1/chat/completions", "json": body | options}


def test_answers_end_before_it_does(start: Start, endless: str) -> None:
    process = start("--model", f"endless={endless}")
    url = where(process)
    with httpx.stream(**ask(url, max_tokens=300), timeout=60) as reply:
        lines = reply.iter_lines()
        while '"content":' not in next(lines):
            pass
        process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert rest[-2] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-4]
    assert process.wait(60) == 0


def test_those_that_take_too_long_are_told(start: Start, endless: str, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("drain = 0.1\n")
    process = start("--model", f"endless={endless}", "--config", str(file))
    url = where(process)
    with httpx.stream(**ask(url, max_tokens=8000), timeout=60) as reply:
        lines = reply.iter_lines()
        while '"content":' not in next(lines):
            pass
        process.send_signal(signal.SIGTERM)
        *_, last = (line for line in lines if line.startswith("data: "))
    assert json.loads(last[6:])["error"]["code"] == "shutting_down"
    assert process.wait(60) == 0


def test_a_second_signal_ends_it_at_once(start: Start, endless: str) -> None:
    process = start("--model", f"endless={endless}")
    url = where(process)
    with httpx.stream(**ask(url, max_tokens=8000), timeout=60) as reply:
        lines = reply.iter_lines()
        while '"content":' not in next(lines):
            pass
        process.send_signal(signal.SIGTERM)
        while True:  # until the first one is known to have come
            try:
                httpx.get(f"{url}/health", timeout=60)
            except httpx.HTTPError:
                break
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors  # of what was cut off


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "there is no model to serve"),
        (("--model", "a="), "NAME=FOLDER"),
        (("--model", "a", "--host", "0.0.0.0"), "there is no key"),
        (("--config", "/nowhere.toml"), "cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(
    environment: dict[str, str], arguments: tuple[str, ...], said: str
) -> None:
    done = run(environment, "serve", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_is_written_and_shown(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    assert run(environment, "serve", "--write-config", str(file)).returncode == 0
    assert run(environment, "serve", "--write-config", str(file)).returncode == 2
    file.write_text(file.read_text().replace("# port = 8080", "port = 9000"))
    done = run(environment, "config", "--config", str(file), "--json")
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)
    assert settings["port"] == {"value": 9000, "from": str(file)}
    assert settings["host"]["from"] == "default"
    named = run({**environment, "MLX_GUARDED_CONFIG": str(file)}, "config")
    assert re.search(r"port +9000 +\S+server.toml", named.stdout)


def test_the_package_does_not_need_the_extra() -> None:
    code = (
        "import sys, mlx_guarded_llm, mlx_guarded_llm.cli.app, mlx_guarded_llm.backend\n"
        "extra = {'starlette', 'uvicorn', 'pydantic_settings', 'sse_starlette'} & {*sys.modules}\n"
        "sys.exit(', '.join(extra) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
