"""Predictions against sums done by hand; tests/engine compares them with MLX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.memory.cache_plan import plan_caches
from mlx_guarded_llm.memory.footprint import Footprint, predict
from mlx_guarded_llm.models import verify
from tests.unit.models.folders import folder_spec, make_folder, write_safetensors

LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}


def _footprint(tmp_path: Path, config: dict[str, Any], **options: Any) -> Footprint:
    folder = make_folder(tmp_path / "model")
    return predict(replace(verify(folder_spec(folder, **options), folder), config=config))


def test_a_70b_model(tmp_path: Path) -> None:
    footprint = _footprint(tmp_path, LLAMA_70B)
    assert footprint.kv_bytes_per_token == 2 * 80 * 8 * 128 * 2
    assert footprint.kv_bytes(8192) == 8192 * 327_680  # 2.7 GB
    assert 0.4e9 < footprint.prefill_bytes(2048) < 2e9


def test_caches_grow_in_steps(tmp_path: Path) -> None:
    footprint = _footprint(tmp_path, LLAMA_70B)
    assert footprint.kv_bytes(0) == 0
    assert footprint.kv_bytes(1) == footprint.kv_bytes(256) == 256 * 327_680
    assert footprint.kv_bytes(257) == footprint.kv_bytes(512)


def test_a_quantised_cache_has_scales_and_biases(tmp_path: Path) -> None:
    footprint = _footprint(tmp_path, LLAMA_70B, kv_bits=4, kv_group_size=64)
    # 128 elements: 64 bytes of them, and two groups of a scale and a bias.
    assert footprint.kv_bytes_per_token == 2 * 80 * 8 * (64 + 2 * 2 * 2)


def test_float32_norms_double_the_cache(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    write_safetensors(folder / "model.safetensors", {"model.norm.weight": ("F32", (4,))})
    footprint = predict(replace(verify(folder_spec(folder), folder), config=LLAMA_70B))
    assert footprint.kv_bytes_per_token == 2 * 80 * 8 * 128 * 4


def test_latent_attention_caches_the_latent(tmp_path: Path) -> None:
    latent = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
    config = {**LLAMA_70B, "model_type": "deepseek_v3", "v_head_dim": 128, **latent}
    assert _footprint(tmp_path, config).kv_bytes_per_token == 80 * (512 + 64) * 2
    # mlx-lm's deepseek_v2 caches the expanded keys and values.
    config["model_type"] = "deepseek_v2"
    assert _footprint(tmp_path, config).kv_bytes_per_token == 80 * 64 * (192 + 128) * 2


def test_windows_are_bounded(tmp_path: Path) -> None:
    config = {
        **LLAMA_70B,
        "model_type": "gpt_oss",
        "num_hidden_layers": 4,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    footprint = _footprint(tmp_path, config)
    each = 2 * 8 * 128 * 2
    assert footprint.kv_bytes_per_token == 2 * each
    assert footprint.windows == ((128, 2 * each),)
    assert footprint.kv_bytes(8192) == 8192 * 2 * each + 128 * 2 * each


def test_windows_that_mlx_lm_does_not_bound_are_not(tmp_path: Path) -> None:
    config = {
        **LLAMA_70B,
        "model_type": "gemma2",
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 40,
    }
    assert _footprint(tmp_path, config).kv_bytes_per_token == 2 * 80 * 8 * 128 * 2


def test_a_nested_config_is_read(tmp_path: Path) -> None:
    config = {
        "model_type": "gemma3",
        "text_config": {**LLAMA_70B, "model_type": "gemma3_text", "num_hidden_layers": 6,
                        "sliding_window": 1024, "sliding_window_pattern": 6},
    }  # fmt: skip
    footprint = _footprint(tmp_path, config)
    each = 2 * 8 * 128 * 2
    assert (footprint.kv_bytes_per_token, footprint.windows) == (each, ((1024, 5 * each),))


def test_recurrent_layers_have_a_constant_state(tmp_path: Path) -> None:
    config = {
        "model_type": "mamba",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "intermediate_size": 128,
        "state_size": 16,
        "conv_kernel": 4,
    }
    footprint = _footprint(tmp_path, config)
    assert footprint.kv_bytes(100_000) == 0
    assert footprint.state_bytes == 3 * (3 * 128 * 2 + 128 * 16 * 4)


def test_hybrids_have_both(tmp_path: Path) -> None:
    config = {
        **LLAMA_70B,
        "model_type": "qwen3_next",
        "num_hidden_layers": 8,
        "full_attention_interval": 4,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
    }
    footprint = _footprint(tmp_path, config)
    assert footprint.kv_bytes_per_token == 2 * (2 * 8 * 128 * 2)
    assert footprint.state_bytes == 6 * (3 * (2 * 32 + 64) * 2 + 64 * 16 * 4)


@pytest.mark.parametrize(
    ("platform", "head_dim", "written"),
    [("linux", 128, True), ("darwin", 128, False), ("darwin", 96, True)],
)
def test_scores_count_where_the_kernel_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, head_dim: int, written: bool
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    footprint = _footprint(tmp_path, {**LLAMA_70B, "head_dim": head_dim})
    longer = footprint.prefill_bytes(512, context_tokens=8192) - footprint.prefill_bytes(512)
    assert longer == (512 * (8192 - 512) * 64 * 2 * 2 if written else 0)


def test_an_absurd_number_of_layers_does_not_hang() -> None:
    assert plan_caches({"num_hidden_layers": 10**12, "num_loops": 10**12}, "llama", width=2).full


def test_a_window_of_unknown_size_keeps_every_token() -> None:
    plan = plan_caches({"layer_types": ["sliding_attention"], "hidden_size": 8}, "llama", width=2)
    assert (plan.full, plan.windows) == (2 * 8 * 2, ())


NONSENSE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2000),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-3, 3), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
KEYS = [
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "kv_lora_rank", "layer_types", "sliding_window", "sliding_window_pattern", "block_configs",
    "linear_attn_config", "full_attn_idxs", "hybrid_override_pattern", "num_kv_shared_layers",
    "attn_layer_period", "full_attention_interval", "sliding_window_layers", "num_loops",
]  # fmt: skip


@given(
    config=st.dictionaries(st.sampled_from(KEYS), NONSENSE),
    module=st.sampled_from(["llama", "gemma3_text", "deepseek_v3", "qwen3_next", "kimi_linear",
                            "baichuan_m1", "mamba2", "exaone4", "iquestloopcoder"]),
)  # fmt: skip
@settings(deadline=None)
def test_no_config_breaks_the_prediction(config: dict[str, Any], module: str) -> None:
    plan = plan_caches(config, module, width=2)
    assert plan.full >= 0
    assert plan.state >= 0


@given(tokens=st.integers(0, 10**6), more=st.integers(0, 10**5))
def test_more_tokens_never_take_less(tokens: int, more: int) -> None:
    footprint = Footprint(
        weight_bytes=1, kv_bytes_per_token=3, windows=((128, 5), (1024, 7)), activation_bytes=2
    )
    assert footprint.kv_bytes(tokens + more) >= footprint.kv_bytes(tokens)
    assert footprint.prefill_bytes(tokens + more) >= footprint.prefill_bytes(tokens)


@pytest.mark.parametrize(
    ("hosts", "gpus", "here"),
    [("10.0.0.1,10.0.0.2", "", 1), ("local:2", "", 2), ("local:2", "4,5", 1)],
)
def test_a_spread_model_takes_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: str, gpus: str, here: int
) -> None:
    monkeypatch.setattr("mlx_guarded_llm.models.gpus.installed", lambda name: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    whole = _footprint(tmp_path / "whole", LLAMA_70B)
    files = verify(folder_spec(make_folder(tmp_path / "m"), hosts=hosts), tmp_path / "m")
    part = predict(replace(files, config=LLAMA_70B, weight_bytes=140 * 10**9))
    head = 2 * 128256 * 8192 * files.activation_bytes  # every rank has all of it
    assert part.weight_bytes == here * (head + (140 * 10**9 - head) // 2)
    assert part.kv_bytes_per_token == here * whole.kv_bytes_per_token // 2
    assert part.activation_bytes == here * whole.activation_bytes
    assert (part.ranks, whole.ranks) == (here, 0)
