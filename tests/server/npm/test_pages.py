"""The lines that the docs give for each client, as they are written."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import MakeModel

from ..conftest import ANSWER, Serve
from .conftest import HERE, WINDOW, Claude, Codex, asked, blocks_of


@pytest.mark.parametrize("place", [0, 1])
def test_ai_sdk(node: str, serve: Serve, scripted: MakeModel, place: int) -> None:
    running = serve(models={"smollm2-135m": scripted(ANSWER)})
    script = blocks_of("ai-sdk.md", "js", running)[place]
    ran = subprocess.run(
        [node, "--input-type=module", "--no-warnings"],
        cwd=HERE,
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    said = [ANSWER + " smollm2-135m"] if place == 0 else [ANSWER, ANSWER]
    assert ran.returncode == 0, ran.stderr
    assert [line for line in ran.stdout.splitlines() if line] == said


def test_claude_code(claude: Claude, serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"qwen3-4b": scripted(ANSWER, context_window=WINDOW, tools=True)})
    session = claude(running, "", "What is the capital of France?", "--tools", "Read")
    assert session.result["result"] == ANSWER
    assert asked(running) == ["qwen3-4b"]


def test_codex(codex: Codex, serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"qwen3-4b": scripted(ANSWER, context_window=WINDOW, tools=True)})
    session = codex(running, "", "What is the capital of France?")
    assert session.said("agent_message") == [ANSWER]
