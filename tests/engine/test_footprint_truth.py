"""Predicted caches against the caches of real models, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from mlx_guarded_llm.memory.cache_plan import plan_caches
from mlx_guarded_llm.memory.footprint import Footprint, _language_module
from mlx_guarded_llm.models.config import text_config

PREFILL, DECODED = 70, 3
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 50,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1000,
    "tie_word_embeddings": True,
}
LATENT: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "routed_scaling_factor": 1.0,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
    "qk_nope_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 2,
    "attention_bias": False,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
}
DELTA: dict[str, Any] = {
    "full_attention_interval": 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "num_experts": 0,
    "num_experts_per_tok": 1,
    "decoder_sparse_step": 1,
    "shared_expert_intermediate_size": 32,
    "mlp_only_layers": [],
    "moe_intermediate_size": 32,
    "partial_rotary_factor": 0.5,
    "norm_topk_prob": True,
}
SLIDING = ["sliding_attention", "full_attention"] * 2
GEMMA = {"sliding_window": 32, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, "model_type": "llama"},
    "llama, sliding": {
        **COMMON,
        "model_type": "llama",
        "layer_types": SLIDING,
        "sliding_window": 32,
    },
    "qwen3": {**COMMON, "model_type": "qwen3"},
    "gemma2": {**COMMON, "model_type": "gemma2", "layer_types": SLIDING, "sliding_window": 32},
    "gemma3": {
        "model_type": "gemma3",
        "vocab_size": 50,
        "text_config": {**COMMON, **GEMMA, "model_type": "gemma3_text"},
    },
    "gpt_oss": {
        **COMMON,
        "model_type": "gpt_oss",
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "sliding_window": 32,
        "layer_types": SLIDING,
    },
    "deepseek_v2": {**COMMON, **LATENT, "model_type": "deepseek_v2"},
    "deepseek_v3": {**COMMON, **LATENT, "model_type": "deepseek_v3"},
    "mamba": {
        "model_type": "mamba",
        "vocab_size": 50,
        "hidden_size": 64,
        "intermediate_size": 128,
        "state_size": 16,
        "num_hidden_layers": 2,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 4,
    },
    "mamba2": {
        "model_type": "mamba2",
        "intermediate_size": 128,
        "vocab_size": 50,
        "hidden_size": 64,
        "num_heads": 4,
        "head_dim": 32,
        "state_size": 16,
        "num_hidden_layers": 2,
        "layer_norm_epsilon": 1e-5,
        "expand": 2,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": True,
        "time_step_limit": [0.01, 10.0],
        "time_step_rank": "auto",
    },
    "openelm": {
        "model_type": "openelm",
        "vocab_size": 50,
        "model_dim": 64,
        "head_dim": 16,
        "num_transformer_layers": 2,
        "num_query_heads": [4, 4],
        "num_kv_heads": [2, 2],
        "ffn_multipliers": [1.0, 1.0],
        "ffn_dim_divisor": 16,
    },
    "qwen3_next": {**COMMON, **DELTA, "model_type": "qwen3_next"},
}

MEASURE = """
import importlib, json, sys
import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
mx.set_default_device(mx.cpu)
prefill, decoded, configs = json.load(sys.stdin)
sizes = {}
for name, config in configs.items():
    module = importlib.import_module("mlx_lm.models." + config["model_type"])
    model = module.Model(module.ModelArgs.from_dict(config))
    cache = make_prompt_cache(model)
    for tokens in [prefill] + [1] * decoded:
        mx.eval(model(mx.array([[1] * tokens]), cache=cache))
    sizes[name] = sum(layer.nbytes for layer in cache)
print(json.dumps(sizes))
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input=json.dumps([PREFILL, DECODED, CONFIGS]),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    sizes: dict[str, int] = json.loads(ended.stdout)
    return sizes


@pytest.mark.parametrize("name", CONFIGS)
def test_predicted_caches_are_the_real_ones(measured: dict[str, int], name: str) -> None:
    config = text_config(CONFIGS[name])
    plan = plan_caches(config, _language_module(config), width=4)
    footprint = Footprint(
        weight_bytes=0,
        kv_bytes_per_token=plan.full,
        windows=plan.windows,
        state_bytes=plan.state,
    )
    predicted = footprint.kv_bytes(PREFILL + DECODED) + footprint.state_bytes
    assert predicted == pytest.approx(measured[name], rel=0.001)
