"""Fixtures of the examples' tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest


@pytest.fixture
def event_loop_of_ours() -> Iterator[None]:
    """LlamaIndex makes an event loop where there is none, and leaves it open."""
    with asyncio.Runner() as runner:
        asyncio.set_event_loop(runner.get_loop())
        yield
    asyncio.set_event_loop(None)


@pytest.fixture
def isolation() -> str:
    """What is above a backend does not know where its engine lives; here no child is needed."""
    return "thread"
