"""A replica that dies in the middle of answers."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_guarded_llm.backend import BaseBackend

from .conftest import Deployed, assert_went_on, read_all

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
    answers = read_all(backend, "slow", prompts, lambda: deployed.kill(home), **options)
    for chunks, result in zip(answers, whole, strict=True):
        assert_went_on(chunks, result)
