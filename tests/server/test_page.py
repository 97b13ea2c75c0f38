"""The settings that the pages tell people to paste are right."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import yaml  # type: ignore[import-untyped]  # brings no types

from mlx_guarded_llm.server.security import Gate
from mlx_guarded_llm.server.settings import Settings

from .conftest import ANSWER, Running

ROOT = Path(__file__).parents[2]

CLIENTS = ROOT / "docs" / "how-to" / "clients"


def test_the_settings_of_the_page() -> None:
    text = (ROOT / "docs" / "how-to" / "server.md").read_text()
    remote, block = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    settings = Settings.model_validate(tomllib.loads(remote))
    assert settings.models["small"].fallbacks == ("gpt",) and settings.models["gpt"].url
    settings = Settings.model_validate(tomllib.loads(block))
    assert settings.models["small"].preload and settings.guard.memory_budget == "24GB"


def test_the_settings_for_open_webui_in_a_container() -> None:
    text = (CLIENTS / "open-webui.md").read_text()
    [block] = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    settings = Settings.model_validate(tomllib.loads(block))
    assert settings.keys["open-webui"].admin and Gate(settings).needs_key


def test_the_models_of_continue() -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", (CLIENTS / "continue.md").read_text(), re.DOTALL)
    models = yaml.safe_load(block)["models"]
    assert {model["apiBase"] for model in models} == {"http://127.0.0.1:8080/v1"}
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
