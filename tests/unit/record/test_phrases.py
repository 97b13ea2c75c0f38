"""Numbers as phrases."""

from __future__ import annotations

from mlx_guarded_llm.record.phrases import counted, rate


def test_counts_and_rates() -> None:
    assert counted(1, "load") == "1 load"
    assert counted(1200, "step") == "1,200 steps"
    assert rate(10, 4.0) == "2.5 tokens/s"
    assert rate(0, 4.0) == rate(3, 0.0) == ""
