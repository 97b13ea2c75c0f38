"""The models of scripts."""

from __future__ import annotations

import pytest

from tests.conftest import MakeModel
from tests.engine._backend import TEXT


@pytest.fixture
def models(tiny: MakeModel, scripted: MakeModel) -> tuple[str, str, str]:
    """TINY, SCRIPTED, which says `TEXT`, and OTHER."""
    return tiny(context_window=100_000), scripted(TEXT), tiny(architecture="qwen3", seed=1)
