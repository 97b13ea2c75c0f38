"""The doctor's trial, on an engine of its own."""

from __future__ import annotations

from mlx_guarded_llm.cli.doctor import checks


def test_the_trial_model_is_loaded_and_generates() -> None:
    device, generate = checks.trial()
    assert device.ok and "for models" in device.text
    assert generate.ok, generate.text
    assert "gave 16 tokens at " in generate.text
