"""Chats with thinking and tools: no more of a prompt is computed than must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.turn_tokens import count


@pytest.mark.parametrize(
    ("architecture", "opens"), [("llama", True), ("gpt_oss", False), ("mamba", True)]
)
def test_ten_turns_of_two_models_compute_little_more_than_the_least(
    tmp_path: Path, architecture: str, opens: bool
) -> None:
    counted = count(tmp_path, architecture, opens=opens, models=2, turns=10)
    assert counted.least < counted.prompt / 5
    assert counted.least <= counted.computed <= 1.1 * counted.least
