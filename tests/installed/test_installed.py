"""What `tests/installed/run` asks of an environment into which the wheels were installed.

It knows nothing of the repository: the packages are those of the environment, and the models are
made by the package `mlx_guarded_llm.testing` that the wheel contains.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = str(Path(sys.executable).with_name("mlx-guarded"))
PACKAGES = (
    "mlx_guarded_llm",
    "langchain_mlx_guarded",
    "llama_index.llms.mlx_guarded",
    "llama_index.embeddings.mlx_guarded",
)
ANSWER = "Paris is the capital."


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of whoever runs this is read or changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_GUARDED_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        # A socket's path must be short.
        patch.setenv("MLX_GUARDED_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        patch.setenv("COLUMNS", "200")
        patch.delenv("MLX_GUARDED_URL", raising=False)
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from mlx_guarded_llm.testing.tiny import make_scripted_model

    folder = tmp_path_factory.mktemp("models") / "scripted"
    return str(make_scripted_model(folder, ANSWER))


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose answers have to be held to a grammar."""
    from mlx_guarded_llm.testing.tiny import make_tiny_model

    return str(make_tiny_model(tmp_path_factory.mktemp("models") / "noise", tools=True))


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from mlx_guarded_llm.testing.tiny import make_tiny_embedder

    return str(make_tiny_embedder(tmp_path_factory.mktemp("models") / "embedder"))


@pytest.fixture(scope="session")
def backend() -> Iterator[Any]:
    from mlx_guarded_llm import Backend

    with Backend() as backend:
        yield backend


def run(*arguments: str) -> str:
    """What a command prints, when it ends well."""
    command = [SCRIPT, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- what was installed ----------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_are_those_of_the_wheels(package: str) -> None:
    file = importlib.import_module(package).__file__
    assert file is not None
    assert Path(file).is_relative_to(sys.prefix)


def test_every_extra_is_installed() -> None:
    metadata = importlib.metadata.metadata("mlx-guarded-llm")
    extras = set(metadata.get_all("Provides-Extra") or ())
    assert {"grammar", "embeddings", "server", "remote", "openai", "otel"} <= extras


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_can_be_imported(package: str) -> None:
    path = importlib.import_module(package).__path__
    names = [package, *(found.name for found in pkgutil.walk_packages(path, f"{package}."))]
    lines = [f"import {name}" for name in names if not name.endswith("__main__")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", "\n".join(lines)], check=True)


def test_the_package_says_that_it_is_typed() -> None:
    for package in PACKAGES:
        file = importlib.import_module(package).__file__
        assert file is not None
        assert Path(file).with_name("py.typed").exists()


# ---- the command line ------------------------------------------------------------


def test_the_command_knows_its_version() -> None:
    assert importlib.metadata.version("mlx-guarded-llm") in run("--version")


def test_every_command_has_help() -> None:
    from mlx_guarded_llm.cli.overview import COMMANDS

    for command in COMMANDS:
        assert "Usage" in run(command, "--help")


def test_the_doctor_finds_nothing() -> None:
    assert "All is well" in run("doctor")


def test_a_prompt_is_answered(model: str) -> None:
    assert run("run", model, "Where?").strip() == ANSWER


# ---- in Python -------------------------------------------------------------------


def test_two_models_answer_with_provenance(backend: Any, model: str, noise: str) -> None:
    from mlx_guarded_llm import GuardedLLM

    result = GuardedLLM(backend, model, fallbacks=[noise]).generate("Where?")
    assert result.text == ANSWER
    assert result.guard.served_model == model
    assert not result.guard.degraded
    backend.generate(noise, "Hi", max_tokens=4)
    assert {info.state for info in backend.models()} == {"resident"}


def test_an_answer_is_held_to_a_schema(backend: Any, noise: str) -> None:
    import json

    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    result = backend.generate(noise, "A number", schema=schema, max_tokens=64)
    assert json.loads(result.text)["n"] in (1, 2)


def test_texts_are_embedded(backend: Any, embedder: str) -> None:
    assert len(backend.embed(embedder, ["one", "two"]).vectors) == 2


def test_langchain(backend: Any, model: str, embedder: str) -> None:
    from langchain_mlx_guarded import ChatMLXGuarded, MLXGuardedEmbeddings

    chat = ChatMLXGuarded(model=model, backend=backend)
    answer = chat.invoke("Where?")
    assert answer.content == ANSWER
    assert answer.response_metadata["guard"]["served_model"] == model
    vectors = MLXGuardedEmbeddings(model=embedder, backend=backend).embed_documents(["a", "b"])
    assert len(vectors) == 2


def test_llama_index(backend: Any, model: str, embedder: str) -> None:
    from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding
    from llama_index.llms.mlx_guarded import MLXGuarded

    answer = MLXGuarded(model=model, backend=backend).complete("Where?")
    assert answer.text == ANSWER
    assert answer.raw["guard"]["served_model"] == model
    assert MLXGuardedEmbedding(model_name=embedder, backend=backend).get_text_embedding("a")


# ---- over HTTP -------------------------------------------------------------------


def test_a_server_answers_every_client(model: str) -> None:
    from openai import OpenAI

    from mlx_guarded_llm import Backend, GuardedLLM, OpenAIModel

    command = [SCRIPT, "serve", "--port", "0", "--model", f"it={model}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            found = re.search(r"at (http://\S+)/v1", line)
            assert found, line
            url = found[1]
            client = OpenAI(base_url=f"{url}/v1", api_key="none")
            said = client.chat.completions.create(
                model="it", messages=[{"role": "user", "content": "Where?"}]
            )
            assert said.choices[0].message.content == ANSWER
            with Backend.connect(url) as remote:
                assert remote.generate("it", "Where?").text == ANSWER
            other = OpenAIModel(url=f"{url}/v1", model="it")
            assert GuardedLLM(None, other).generate("Where?").text == ANSWER
            assert '"answers": true' in run("status", "--url", url, "--json")
        finally:
            server.terminate()
            assert server.wait(60) == 0
