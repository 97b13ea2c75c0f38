"""What the tests of the LlamaIndex packages have in common."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.mlx_guarded import MLXGuarded

from mlx_guarded_llm import RetryPolicy
from mlx_guarded_llm.testing.faulty import FaultyBackend

# LlamaIndex's agents and its StructuredLLM use deprecated parts of pydantic and workflows.
old_parts = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SOON = RetryPolicy(initial_wait=0, jitter=0)
ANSWERS = {"big": "Forty two.", "small": "About forty."}


class Fake(FaultyBackend):
    """A backend that says what it was told to, and whose models are not on disk."""

    def __init__(self, **faults: Any) -> None:
        super().__init__(None, faults, answers=ANSWERS)

    def card(self, model: str) -> None:
        return None


def user(text: str = "What is 6 times 7?") -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def big(backend: Any, **settings: Any) -> MLXGuarded:
    """The model that is asked in most tests; it is retried without pauses."""
    return MLXGuarded(**({"model": "big", "backend": backend, "retry": SOON} | settings))
