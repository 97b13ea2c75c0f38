"""Attention on CUDA is left to MLX, unless somebody decided otherwise."""

from __future__ import annotations

import os

import pytest
from mlx_lm.models.cache import KVCache

from mlx_guarded_llm import Backend
from mlx_guarded_llm.engine.residency import residents
from mlx_guarded_llm.memory.cache_plan import CACHE_STEP
from tests.conftest import MakeModel

VARIABLE = "MLX_CUDA_USE_CUDNN_SDPA"


@pytest.mark.parametrize(
    ("cuda", "given", "then"),
    [(True, None, "0"), (True, "1", "1"), (False, None, None), (False, "1", "1")],
)
def test_cudnn_is_left_out_on_cuda(
    tiny: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    cuda: bool,
    given: str | None,
    then: str | None,
) -> None:
    monkeypatch.setenv(VARIABLE, given or "")  # so that it is as before when the test is over
    if given is None:
        monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(residents, "on_cuda", lambda: cuda)
    with Backend(isolation="thread") as backend:
        assert backend.generate(tiny(), "Hello", max_tokens=2).text
        assert os.environ.get(VARIABLE) == then


def test_caches_grow_by_what_their_memory_is_predicted_with() -> None:
    assert KVCache.step == CACHE_STEP
