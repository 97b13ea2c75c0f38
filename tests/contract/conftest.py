"""Fixtures of the adapters' contract."""

from __future__ import annotations

import pytest


@pytest.fixture
def isolation() -> str:
    """What is above a backend does not know where its engine lives; here no child is needed."""
    return "thread"
