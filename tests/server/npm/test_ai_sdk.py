"""The AI SDK, through each of its providers that can speak to the server."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.conftest import MakeModel

from ..conftest import ANSWER, Serve
from .conftest import HERE

pytestmark = pytest.mark.npm

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": %d, "b": %d}}\n</tool_call>'


@pytest.mark.parametrize("provider", ["compatible", "anthropic", "openai"])
def test_ai_sdk(
    node: str,
    serve: Serve,
    scripted: MakeModel,
    tiny: MakeModel,
    embedder: MakeModel,
    provider: str,
) -> None:
    nothing = {"model": tiny(nan=True), "fallbacks": ["paris"], "retry": {"attempts": 1}}
    calls = CALL % (3, 4) + "\n" + CALL % (1, 2)
    running = serve(
        models={
            "paris": scripted(ANSWER),
            "caller": scripted(calls, later=["The sums are 7 and 3."], tools=True),
            "thinker": scripted("<think>\nWell.\n</think>\n\nParis.", thinking=True),
            "noise": tiny(),
            "small": scripted(ANSWER, context_window=1024),
            "fragile": nothing,
            "marked": {**nothing, "on_fallback": "mark"},
            "endless": scripted("Over and over. ", loop=True, context_window=200_000),
            "vectors": embedder(),
        }
    )
    ran = subprocess.run(
        [node, "--test", "--test-timeout=100000", "--test-reporter=spec", "ai_sdk.test.mjs"],
        cwd=HERE,
        env=os.environ | {"MLX_GUARDED_URL": running.url, "PROVIDER": provider},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "pass 0" not in ran.stdout
