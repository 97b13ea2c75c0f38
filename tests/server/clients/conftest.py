"""Servers that last for a module: a client's tests change nothing in them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.server.opening import make_catalog
from tests.conftest import MakeModel

from ..conftest import ANSWER, Running, running, settings_of

ServeModule = Callable[..., Running]
_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 19, "b": 23}}\n</tool_call>'


def usual_models(scripted: MakeModel, embedder: MakeModel) -> dict[str, str]:
    """One that answers `ANSWER`, one that adds with a tool, and one that embeds."""
    adder = scripted(_CALL, tools=True, later=("It is 42.",), context_window=8192)
    return {
        "smollm2-135m": scripted(ANSWER),
        "qwen3-4b": adder,
        "all-minilm-l6-v2": embedder(),
    }


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """Connections of one test; those that clients share would outlive its event loop."""
    async with httpx.AsyncClient(timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def serve_module(
    frozen_heap: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServeModule]:
    """As `serve`: `serve_module(models={"paris": folder})`."""
    with ExitStack() as ends:

        def start(**given: Any) -> Running:
            settings = settings_of(**given)
            catalog = make_catalog(settings, cache_dir=tmp_path_factory.mktemp("cache"))
            backend = ends.enter_context(
                Backend(isolation="thread", catalog=catalog, offline=True, memory_budget="1GiB")
            )
            return ends.enter_context(running(backend, settings))

        yield start
