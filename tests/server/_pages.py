"""The blocks of Python on pages for clients, which are run against a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeModel

from .conftest import ANSWER, Running

ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1:8080"
_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 19, "b": 23}}\n</tool_call>'


def examples(*pages: str) -> list[Any]:
    """Every block of Python on these pages in which a client asks the server."""
    found = []
    for page in pages:
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        asking = [block for block in blocks if URL in block]
        assert asking, page
        found += [pytest.param(block, id=f"{page}-{n}") for n, block in enumerate(asking)]
    return found


def models_of_pages(scripted: MakeModel, embedder: MakeModel) -> dict[str, str]:
    """The models that the pages name: one answers `ANSWER`, one adds with a tool."""
    adder = scripted(_CALL, tools=True, later=("It is 42.",), context_window=8192)
    return {
        "smollm2-135m": scripted(ANSWER),
        "smollm2-135m-bf16": scripted(ANSWER),
        "qwen3-4b": adder,
        "all-minilm-l6-v2": embedder(),
    }


def run_example(code: str, running: Running, printed: pytest.CaptureFixture[str]) -> None:
    """Run a block, which prints what it got."""
    exec(compile(code.replace(URL, running.url), "page", "exec"), {"__name__": "page"})
    said = printed.readouterr().out
    if "embed" in code:
        assert said.strip().endswith("32")  # numbers of a vector
    elif "qwen3-4b" in code:
        assert said.strip() == "It is 42."
    elif "except" in code:
        assert said.startswith("context_length_exceeded")
    else:
        assert said.startswith(ANSWER)
