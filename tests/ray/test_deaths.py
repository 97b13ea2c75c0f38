"""A replica that dies in the middle of answers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlx_guarded_llm.backend import BaseBackend
from mlx_guarded_llm.results import Chunk

from .conftest import Deployed

pytestmark = pytest.mark.timeout(300)

STREAMS = 8
TOKENS = 200


def test_no_stream_is_lost_when_its_replica_is_killed(
    backend: BaseBackend, deployed: Deployed
) -> None:
    prompts = [f"number {n}" for n in range(STREAMS)]
    options: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0.0}
    whole = [backend.generate("slow", prompt, **options) for prompt in prompts]
    home = whole[-1].guard.replica
    begun = threading.Barrier(STREAMS, action=lambda: deployed.kill(home))

    def read(prompt: str) -> list[Chunk]:
        chunks = []
        for number, chunk in enumerate(backend.stream("slow", prompt, **options)):
            chunks.append(chunk)
            if number == 2:
                begun.wait(60)
        return chunks

    with ThreadPoolExecutor(STREAMS) as pool:
        answers = list(pool.map(read, prompts))
    for chunks, result in zip(answers, whole, strict=True):
        assert "".join(chunk.text for chunk in chunks) == result.text
        last = chunks[-1]
        assert last.finish_reason == "length"
        assert last.usage is not None
        assert last.usage.completion_tokens == TOKENS
        assert last.guard is not None
        assert last.guard.resumed
        assert last.guard.replica not in ("", home)
