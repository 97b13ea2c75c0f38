"""What the pages tell people to paste works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # brings no types

from mlx_guarded_llm.server.security import Gate
from mlx_guarded_llm.server.settings import Settings
from tests.conftest import MakeModel

from ._pages import ROOT, URL, examples, models_of_pages, run_example
from .conftest import ANSWER, Running, Serve

CLIENTS = ROOT / "docs" / "how-to" / "clients"

PAGES = (
    "README.md",
    "docs/how-to/server.md",
    "docs/how-to/remote.md",
    "docs/how-to/clients/openai.md",
)


@pytest.mark.parametrize("code", examples(*PAGES))
def test_the_example_of_a_client(
    serve: Serve,
    scripted: MakeModel,
    embedder: MakeModel,
    code: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_example(code, serve(models=models_of_pages(scripted, embedder)), capsys)


def test_the_settings_of_the_page() -> None:
    text = (ROOT / "docs" / "how-to" / "server.md").read_text()
    remote, block = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    settings = Settings.model_validate(tomllib.loads(remote))
    assert settings.models["small"].fallbacks == ("gpt",) and settings.models["gpt"].url
    settings = Settings.model_validate(tomllib.loads(block))
    assert settings.models["small"].preload and settings.guard.memory_budget == "24GB"


def curls() -> list[str]:
    """Every command of the page for curl."""
    text = (CLIENTS / "curl.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in re.split(r"^\$ ", block, flags=re.MULTILINE)]
    found = [line.strip() for line in lines if line.startswith("curl")]
    found = [line for line in found if "--unix-socket" not in line]  # see test_deployment
    assert len(found) == 6
    return found


@pytest.mark.parametrize("command", curls(), ids=str)
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(
    serve: Serve, scripted: MakeModel, embedder: MakeModel, tmp_path: Path, command: str
) -> None:
    running = serve(models=models_of_pages(scripted, embedder))
    command = command.replace(URL, running.url)
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr == "" and done.stdout
    assert '"error":{' not in done.stdout


def test_the_settings_for_open_webui_in_a_container() -> None:
    text = (CLIENTS / "open-webui.md").read_text()
    [block] = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    settings = Settings.model_validate(tomllib.loads(block))
    assert settings.keys["open-webui"].admin and Gate(settings).needs_key


def test_the_models_of_continue() -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", (CLIENTS / "continue.md").read_text(), re.DOTALL)
    models = yaml.safe_load(block)["models"]
    assert {model["apiBase"] for model in models} == {f"{URL}/v1"}
    assert {model["provider"] for model in models} == {"openai"}
    [completing] = [model for model in models if model["roles"] == ["autocomplete"]]
    assert completing["useLegacyCompletionsEndpoint"]
    assert float(completing["requestOptions"]["headers"]["x-guard-deadline"])


def test_a_completion_of_continue(paris: Running) -> None:
    """As its `openai` provider asks for one."""
    body = {
        "model": "paris",
        "prompt": "<|fim_prefix|>def capital():\n    return <|fim_suffix|>\n<|fim_middle|>",
        "max_tokens": 256,
        "temperature": 0.01,
        "stop": ["<|endoftext|>", "<|fim_prefix|>", "/src/", "\n\n"],
        "stream": True,
    }
    headers = {"authorization": "Bearer none", "api-key": "none", "x-guard-deadline": "5"}
    reply = paris.client.post("/v1/completions", json=body, headers=headers)
    lines = [line for line in reply.text.splitlines() if line.startswith("data: {")]
    assert "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines) == ANSWER
