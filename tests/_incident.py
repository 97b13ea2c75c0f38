"""The incident's chain, for the tests that put it under failures."""

from __future__ import annotations

from typing import Any

from mlx_guarded_llm.errors import EngineDied, LoadDeferredTimeout, QueueFull
from mlx_guarded_llm.testing.faulty import CUT_THINKING, EMPTY, LOOP, Says

RIGHT, WRONG = "The answer is 42.", "The answer is 7."
STEPS = ("Make a plan.", "Think step by step.", "Now give the answer.")


def faults() -> list[Any]:
    """What can go wrong with a call before any of its answer is passed on."""
    return [
        LoadDeferredTimeout("it waited.", model="m", waited=120.0, held_by=[("r", "other")]),
        EngineDied("the worker died of SIGABRT."),
        QueueFull("full."),
        Says("The answ", finish_reason="length"),
        CUT_THINKING,
        EMPTY,
        LOOP,
    ]
