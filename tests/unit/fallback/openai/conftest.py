"""A server that speaks OpenAI's API badly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests._upstream import Upstream, upstream


@pytest.fixture
def server() -> Iterator[Upstream]:
    with upstream() as server:
        yield server
