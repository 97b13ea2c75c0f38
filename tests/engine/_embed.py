"""What the tests of embedding in the engine have in common."""

from __future__ import annotations

from mlx_guarded_llm import Backend
from tests.engine._backend import events

WORDS = ["a", "cat", "sat on", "the mat,", "which", "was not its own: it belonged", "to a dog."]
LONG = ["x " * 100] * 300  # each fills a micro-batch: a second or more
TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 3]) + str(i) for i in range(60)]


def kinds(backend: Backend, request_id: str) -> list[str]:
    return [event.kind for event in events(backend, "request.", request_id=request_id)]
