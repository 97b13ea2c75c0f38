"""What the pages' examples find: models under the names that the pages give, and a server."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.backend import default_backend
from tests._browser import free_port
from tests._pool import pooled
from tests.conftest import MakeModel

from ._examples import ROOT, Example

# Text for who asks for text; and an object, for who asks for one.
ANSWER = '{"name": "Paris", "country": "France", "population": 2}'
_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 19, "b": 23}}\n</tool_call>'
_ADDRESS = re.compile(r"(?:127\.0\.0\.1|localhost):8080")
_SERVE = re.compile(r"^mlx-guarded serve(?!.*--(?:background|write-config))")
_ENDLESS = re.compile(r"^curl -N ")
_LIMIT = 120.0  # seconds for a command, on a machine that does other things as well
CURL_TIMED_OUT = 28


@pytest.fixture(scope="session")
def models(
    scripted: MakeModel,
    tiny: MakeModel,
    embedder: MakeModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Files in which the names of the pages are small models, by the variable that names one."""
    answering = scripted(ANSWER, context_window=8192)
    adding = scripted(_CALL, tools=True, later=("It is 42.",), context_window=8192)
    large = scripted("It is Paris.", context_window=32_768)
    names = {
        "smollm2-135m": answering,
        "smollm2-135m-bf16": scripted("It is Paris.", context_window=8192),
        **dict.fromkeys(("phi3", "phi3-mini", "llama-3b", "llama-70b"), large),
        **dict.fromkeys(("qwen", "qwen3-4b"), adding),
        "all-minilm-l6-v2": embedder(),
    }
    long = scripted("One, two, three, four, " * 40)
    wide = tiny(hidden_size=256)  # 64 values of a head share a scale
    files = {
        "MLX_GUARDED_MODELS_FILE": names,
        "LONG_ANSWERS": {**names, "smollm2-135m": long, "smollm2-135m-bf16": long},
        "WIDE_HEADS": {**names, "smollm2-135m": wide},
    }
    folder = tmp_path_factory.mktemp("aliases")
    return {variable: _written(folder / variable, tables) for variable, tables in files.items()}


def _written(file: Path, models: Mapping[str, str]) -> Path:
    tables = (f"[{name}]\nmodel = {json.dumps(folder)}" for name, folder in models.items())
    file.write_text("\n".join(tables))
    return file


@pytest.fixture(scope="session")
def environment(
    models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[pytest.MonkeyPatch]:
    """Variables that the examples and their programs have; no hub, and nobody's home."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, file in models.items():
            patch.setenv(variable, str(file))
        patch.setenv("MLX_GUARDED_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("KEY", "none")
        patch.setenv("OPENAI_API_KEY", "none")
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise litellm fetches one
        patch.setattr("mlx_guarded_llm.backend.backend.launcher", pooled)
        yield patch


class Server:
    """`mlx-guarded serve`, as a page starts it, at a port of its own."""

    def __init__(self, command: str, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.partition(":")[2]
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {command} --port {port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )
        self.said: list[str] = []
        self._begun = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._begun.wait(_LIMIT) and self.process.poll() is None, "".join(self.said)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("Try: "):
                self._begun.set()
        self._begun.set()

    def close(self) -> None:
        """End it, as Ctrl-C would."""
        self.process.terminate()
        assert self.process.wait(_LIMIT) == 0, "".join(self.said)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="session")
def server(
    environment: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Server]]:
    """The server of every page that starts none: made when it is first asked for."""
    made: list[Server] = []

    def get() -> Server:
        if not made:
            names = ("smollm2-135m", "smollm2-135m-bf16", "qwen3-4b", "qwen", "phi3")
            flags = " ".join(f"--model {name}" for name in (*names, "all-minilm-l6-v2"))
            made.append(Server(f"mlx-guarded serve {flags}", tmp_path_factory.mktemp("server")))
        return made[0]

    yield get
    for one in made:
        one.close()


class Page:
    """Runs the examples of one page, one after the other, as a reader would.

    Attributes:
        names: of its Python, which go on from block to block.
        folder: in which its commands run.
    """

    def __init__(self, folder: Path, shared: Callable[[], Server]) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.folder = folder
        self._shared = shared
        self._own: Server | None = None
        self._ends = ExitStack()
        self._environ = dict(os.environ)
        (folder / "docs").symlink_to(ROOT / "docs")

    def run(self, example: Example) -> None:
        """Run the next example."""
        if example.language == "python":
            if example.before:
                self._python(example.before, example)
            self._python(example.code, example)
        elif example.language == "file":
            (self.folder / example.before).write_text(example.code)
        elif _SERVE.match(example.code):
            self._serve(example)
        else:
            self._command(example)

    def close(self) -> None:
        """End what the page has started."""
        shared = default_backend._shared
        if shared is not None:
            shared.close()
        self._ends.close()
        os.environ.clear()
        os.environ.update(self._environ)

    def _python(self, source: str, example: Example) -> None:
        # Padded, so that a traceback has the lines of the page.
        text = "\n" * (example.line - 1) + self._addressed(source)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        with chdir(self.folder):
            # Without the flags of this file, such as annotations that are only texts.
            code = compile(text, example.page, "exec", flags=flags, dont_inherit=True)
            running = eval(code, self.names)
            if running is not None:
                asyncio.run(running)

    def _serve(self, example: Example) -> None:
        if self._own is not None:
            self._ends.close()
        before = f"{example.before}\n" if example.before else ""
        if before:
            subprocess.run(["bash", "-ec", before], check=True, cwd=self.folder)
        self._own = Server(example.code, self.folder)
        self._ends.callback(self._own.close)

    def _command(self, example: Example) -> None:
        code = self._addressed(example.code)
        if _ENDLESS.match(code):
            code = code.replace("curl -N", "curl -N --max-time 5", 1)
        asked = [line[2:] for line in example.shown.splitlines() if line.startswith("> ")]
        done = subprocess.run(
            ["bash", "-c", f"set -e\n{self._addressed(example.before)}\nset +e\n{code}"],
            input="\n".join([*asked, ""]),
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            cwd=self.folder,
            check=False,
        )
        if "serve --background" in f"{example.before}{example.code}":
            self._ends.callback(subprocess.run, ["mlx-guarded", "stop", "--now"], check=True)
        said = f"{done.stdout}\n{done.stderr}"
        if _ENDLESS.match(code):
            assert done.returncode == CURL_TIMED_OUT and done.stdout, said
        elif example.shown.startswith("error: "):
            assert done.returncode != 0, said
            assert example.shown.splitlines()[0] in done.stderr, said
        else:
            assert done.returncode == 0, said
            assert '"error":{' not in done.stdout, said

    def _addressed(self, code: str) -> str:
        """The code, with the address of a server that runs."""
        if not _ADDRESS.search(code):
            return code
        return _ADDRESS.sub((self._own or self._shared()).address, code)


@pytest.fixture(scope="module")
def page(
    request: pytest.FixtureRequest,
    environment: pytest.MonkeyPatch,
    server: Callable[[], Server],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Page]:
    """The page of an example, with what those before it have made."""
    made = Page(tmp_path_factory.mktemp("page"), server)
    yield made
    made.close()
