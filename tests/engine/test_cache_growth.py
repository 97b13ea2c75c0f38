"""Which sizes KV caches have on CUDA, tried on a CPU."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from mlx_guarded_llm import Backend
from mlx_guarded_llm.engine.residency import residents
from mlx_guarded_llm.engine.residency.cache_growth import CUDNN_STEP, keep_own_attention
from tests.conftest import MakeModel
from tests.engine._backend import raw_tokens, tokens_of


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches grow as mlx-lm has them when the test is over."""
    monkeypatch.setattr(KVCache, "step", KVCache.step)


def part(tokens: int, first: int) -> mx.array:
    """Keys of so many tokens, each with its position in it."""
    return mx.arange(first, first + tokens, dtype=mx.float32)[None, None, :, None]


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("seed", range(12))
def test_no_cache_has_a_size_that_cudnn_takes(seed: int) -> None:
    keep_own_attention()
    dice = random.Random(seed)
    prompt = [dice.choice([1, 255, 256, 300, 512, 2048]) for _ in range(dice.randrange(1, 4))]
    cache: Any = KVCache()
    for tokens in [*prompt, *[1] * 1100]:
        if cache.keys is not None and dice.random() < 0.001:  # taken out of a batch
            keys, values, offset = cache.state
            cache = KVCache()
            cache.state = keys[..., :offset, :], values[..., :offset, :], offset
        grew = cache.keys is None or cache.offset + tokens > cache.keys.shape[2]
        keys, _ = cache.update_and_fetch(part(tokens, cache.offset), part(tokens, 0))
        assert keys.shape[2] == cache.offset
        if grew:
            assert cache.keys.shape[2] % CUDNN_STEP
            assert mx.array_equal(keys, part(cache.offset, 0))


def test_an_engine_on_cuda_answers_the_same(
    tiny: MakeModel, monkeypatch: pytest.MonkeyPatch, restored: None
) -> None:
    model, tokens = tiny(), 300
    with Backend(isolation="thread") as backend:
        expected = backend.run(partial(raw_tokens, model, "Hello", tokens))
    monkeypatch.setattr(residents, "on_cuda", lambda: True)
    with Backend(isolation="thread") as backend:
        result = backend.generate(model, "Hello", max_tokens=tokens, logprobs=True)
        assert isinstance(KVCache.step, property)
        assert tokens_of(result) == expected
