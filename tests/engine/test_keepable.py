"""Which caches are kept for prompts that begin alike."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map_with_path
from mlx_lm.models.cache import CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from mlx_guarded_llm.engine.residency import keepable
from mlx_guarded_llm.engine.residency.keepable import keepable_tokens
from mlx_guarded_llm.engine.residency.prefix import UNBOUNDED

COMMON = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048,
}  # fmt: skip
LLAMA = {**COMMON, "intermediate_size": 64, "num_key_value_heads": 2}
LLAMA4 = {
    **LLAMA, "attention_bias": False, "attention_chunk_size": 512, "interleave_moe_layer_step": 1,
    "intermediate_size_mlp": 64, "num_experts_per_tok": 1, "num_local_experts": 2,
    "rope_scaling": None, "use_qk_norm": True,
}  # fmt: skip
DEEPSEEK41 = {
    **COMMON, "q_lora_rank": 16, "qk_rope_head_dim": 4, "moe_intermediate_size": 32,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "routed_scaling_factor": 1.0,
    "sliding_window": 32,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _ask_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepable, "_known", {})


def make(module: str, **config: Any) -> Any:
    """A model with random weights, large enough that each token counts."""
    architecture = importlib.import_module(f"mlx_lm.models.{module}")
    mx.random.seed(7)
    model = architecture.Model(architecture.ModelArgs.from_dict({"model_type": module, **config}))

    def spread(name: str, weight: mx.array) -> mx.array:
        if weight.ndim < 2 or weight.dtype != mx.float32:
            return weight
        return mx.random.normal(weight.shape) * (
            0.3 if "embed" in name else 1.5 / weight.shape[-1] ** 0.5
        )

    model.update(tree_map_with_path(spread, model.parameters()))
    mx.eval(model.parameters())
    return model


def llama(*caches: Any) -> Any:
    """A llama whose layers have these caches."""
    model = make("llama", **{**LLAMA, "num_hidden_layers": len(caches)})
    own = {"make_cache": lambda self: [cache() for cache in caches]}
    model.__class__ = type("Own", (type(model),), own)
    return model


def test_usual_caches_are_kept() -> None:
    assert keepable_tokens(make("llama", **LLAMA)) == UNBOUNDED
    windows = {**LLAMA, "layer_types": ["sliding_attention", "full_attention"] * 2}
    assert keepable_tokens(make("llama", **windows, sliding_window=16)) == UNBOUNDED


def test_chunks_are_kept_until_they_move_on() -> None:
    text = make("llama4", text_config={"model_type": "llama4_text", **LLAMA4})
    assert keepable_tokens(text) == 512


def test_a_cache_that_can_only_be_read_is_not_kept() -> None:
    assert keepable_tokens(make("deepseek_v41", **DEEPSEEK41)) == 0


class Liar(KVCache):
    """Says that it can be cut back, and cannot."""

    def trim(self, n: int) -> int:
        return n


class Forgetful(KVCache):
    """Leaves half of it behind when it is copied."""

    @property
    def state(self) -> Any:
        return self.keys, self.values

    @state.setter
    def state(self, value: Any) -> None:
        self.keys, self.values = mx.zeros_like(value[0]), value[1]


class Locked(KVCache):
    """Cannot be written."""

    state = property(lambda self: (self.keys, self.values))


@pytest.mark.parametrize("cache", [Liar, Forgetful, Locked])
def test_caches_that_fail(cache: type) -> None:
    assert keepable_tokens(llama(KVCache, cache)) == 0


def test_windows_of_any_layer() -> None:
    assert keepable_tokens(llama(KVCache, lambda: RotatingKVCache(max_size=64))) == UNBOUNDED
    # llama never lets a chunk move on.
    assert keepable_tokens(llama(KVCache, lambda: ChunkedKVCache(64))) == UNBOUNDED


def test_parts_of_caches_are_looked_at() -> None:
    inner = ChunkedKVCache(32)
    assert list(keepable._parts([CacheList(KVCache(), inner)]))[2] is inner


def test_an_architecture_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama", **LLAMA)
    keepable_tokens(model)
    monkeypatch.setattr(keepable, "_same_when_kept", None)
    assert keepable_tokens(model) == UNBOUNDED
