"""Configurations and weight shapes of small models, as mlx-lm names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Shapes = dict[str, tuple[int, ...]]

HEADS, KV_HEADS = 4, 2


@dataclass(frozen=True)
class Sizes:
    """The sizes a caller may choose; the others follow from them."""

    vocab_size: int
    hidden_size: int
    layers: int
    context_window: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // HEADS

    @property
    def intermediate_size(self) -> int:
        """Width inside the feed-forward block."""
        return 2 * self.hidden_size


@dataclass(frozen=True)
class Architecture:
    """One model type: its config.json and its tensors.

    Attributes:
        config: the entries of config.json beyond those that all transformers share.
        layer: shapes of one layer, by names inside it.
        outside: shapes of everything else.
        prefix: where layer number `{}` lives.
        post_norm: weight of the norms after attention and feed-forward, where there
            are such norms (Gemma); they weigh the layers against the embedding.
    """

    config: Callable[[Sizes], Mapping[str, Any]]
    layer: Callable[[Sizes], Shapes]
    outside: Callable[[Sizes], Shapes]
    prefix: str = "model.layers.{}."
    post_norm: float = 1.0

    def shapes(self, sizes: Sizes) -> Shapes:
        """Shape of each tensor in the file."""
        shapes = self.outside(sizes)
        for number in range(sizes.layers):
            prefix = self.prefix.format(number)
            shapes |= {prefix + name: shape for name, shape in self.layer(sizes).items()}
        return shapes


def _transformer(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "intermediate_size": sizes.intermediate_size,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }


def _attention(sizes: Sizes) -> Shapes:
    queries, keys = HEADS * sizes.head_dim, KV_HEADS * sizes.head_dim
    return {
        "self_attn.q_proj.weight": (queries, sizes.hidden_size),
        "self_attn.k_proj.weight": (keys, sizes.hidden_size),
        "self_attn.v_proj.weight": (keys, sizes.hidden_size),
        "self_attn.o_proj.weight": (sizes.hidden_size, queries),
    }


def _query_key_norms(sizes: Sizes) -> Shapes:
    return {
        "self_attn.q_norm.weight": (sizes.head_dim,),
        "self_attn.k_norm.weight": (sizes.head_dim,),
    }


def _feed_forward(sizes: Sizes) -> Shapes:
    hidden, intermediate = sizes.hidden_size, sizes.intermediate_size
    return {
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }


def _norms(sizes: Sizes, *names: str) -> Shapes:
    names = names or ("input_layernorm", "post_attention_layernorm")
    return {f"{name}.weight": (sizes.hidden_size,) for name in names}


def _tied(sizes: Sizes) -> Shapes:
    return {
        "model.embed_tokens.weight": (sizes.vocab_size, sizes.hidden_size),
        "model.norm.weight": (sizes.hidden_size,),
    }


def _untied(sizes: Sizes) -> Shapes:
    return _tied(sizes) | {"lm_head.weight": (sizes.vocab_size, sizes.hidden_size)}


def _llama_layer(sizes: Sizes) -> Shapes:
    return _attention(sizes) | _feed_forward(sizes) | _norms(sizes)


def _qwen2_layer(sizes: Sizes) -> Shapes:
    biased = ("q_proj", "k_proj", "v_proj")
    rows = {name: _attention(sizes)[f"self_attn.{name}.weight"][0] for name in biased}
    biases: Shapes = {f"self_attn.{name}.bias": (count,) for name, count in rows.items()}
    return _llama_layer(sizes) | biases


def _phi3_layer(sizes: Sizes) -> Shapes:
    heads = HEADS + 2 * KV_HEADS
    hidden, intermediate = sizes.hidden_size, sizes.intermediate_size
    return _norms(sizes) | {
        "self_attn.qkv_proj.weight": (heads * sizes.head_dim, hidden),
        "self_attn.o_proj.weight": (hidden, HEADS * sizes.head_dim),
        "mlp.gate_up_proj.weight": (2 * intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }


def _gemma_layer(sizes: Sizes) -> Shapes:
    norms = _norms(sizes, "pre_feedforward_layernorm", "post_feedforward_layernorm")
    return _llama_layer(sizes) | norms


EXPERTS = 4


def _gpt_oss_layer(sizes: Sizes) -> Shapes:
    hidden = sizes.hidden_size
    attention = _attention(sizes)
    biases = {name.replace("weight", "bias"): (shape[0],) for name, shape in attention.items()}
    experts: Shapes = {}
    for name in ("gate_proj", "up_proj", "down_proj"):
        experts[f"mlp.experts.{name}.weight"] = (EXPERTS, hidden, hidden)
        experts[f"mlp.experts.{name}.bias"] = (EXPERTS, hidden)
    router = {"mlp.router.weight": (EXPERTS, hidden), "mlp.router.bias": (EXPERTS,)}
    return attention | biases | experts | router | _norms(sizes) | {"self_attn.sinks": (HEADS,)}


STATE, RANK, CONVOLUTION = 8, 4, 4


def _mamba_layer(sizes: Sizes) -> Shapes:
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    return {
        "norm.weight": (hidden,),
        "mixer.in_proj.weight": (2 * inner, hidden),
        "mixer.conv1d.weight": (inner, CONVOLUTION, 1),
        "mixer.conv1d.bias": (inner,),
        "mixer.x_proj.weight": (RANK + 2 * STATE, inner),
        "mixer.dt_proj.weight": (inner, RANK),
        "mixer.dt_proj.bias": (inner,),
        "mixer.A_log": (inner, STATE),
        "mixer.D": (inner,),
        "mixer.out_proj.weight": (hidden, inner),
    }


def _mamba_outside(sizes: Sizes) -> Shapes:
    return {
        "backbone.embeddings.weight": (sizes.vocab_size, sizes.hidden_size),
        "backbone.norm_f.weight": (sizes.hidden_size,),
        "lm_head.weight": (sizes.vocab_size, sizes.hidden_size),
    }


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        config=lambda sizes: _transformer(sizes) | {"tie_word_embeddings": False},
        layer=_llama_layer,
        outside=_untied,
    ),
    "qwen2": Architecture(
        config=lambda sizes: _transformer(sizes) | {"tie_word_embeddings": False},
        layer=_qwen2_layer,
        outside=_untied,
    ),
    "qwen3": Architecture(
        config=lambda sizes: (
            _transformer(sizes) | {"head_dim": sizes.head_dim, "tie_word_embeddings": False}
        ),
        layer=lambda sizes: _llama_layer(sizes) | _query_key_norms(sizes),
        outside=_untied,
    ),
    "phi3": Architecture(config=_transformer, layer=_phi3_layer, outside=_untied),
    "gemma2": Architecture(
        config=lambda sizes: (
            _transformer(sizes)
            | {"head_dim": sizes.head_dim, "query_pre_attn_scalar": sizes.head_dim}
        ),
        layer=_gemma_layer,
        outside=_tied,
        post_norm=8.0,
    ),
    "gemma3_text": Architecture(
        config=lambda sizes: (
            _transformer(sizes)
            | {
                "head_dim": sizes.head_dim,
                "query_pre_attn_scalar": sizes.head_dim,
                # A short window and every second layer full: both kinds of cache.
                "sliding_window": 32,
                "sliding_window_pattern": 2,
            }
        ),
        layer=lambda sizes: _gemma_layer(sizes) | _query_key_norms(sizes),
        outside=_tied,
        post_norm=8.0,
    ),
    "gpt_oss": Architecture(
        config=lambda sizes: (
            _transformer(sizes)
            | {
                "intermediate_size": sizes.hidden_size,
                "head_dim": sizes.head_dim,
                "num_local_experts": EXPERTS,
                "num_experts_per_tok": 2,
                "sliding_window": 32,
                # YaRN keeps arrays in `_` attributes, which a load must evaluate too.
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": sizes.context_window // 2,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                },
            }
        ),
        layer=_gpt_oss_layer,
        outside=_untied,
    ),
    "mamba": Architecture(
        config=lambda sizes: {
            "hidden_size": sizes.hidden_size,
            "num_hidden_layers": sizes.layers,
            "intermediate_size": sizes.intermediate_size,
            "state_size": STATE,
            "conv_kernel": CONVOLUTION,
            "use_bias": False,
            "use_conv_bias": True,
            "time_step_rank": RANK,
            "tie_word_embeddings": False,
        },
        layer=_mamba_layer,
        outside=_mamba_outside,
        prefix="backbone.layers.{}.",
    ),
}
