"""A model of one layer with random weights, to try the engine without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_WORDS = ("<end>", "Hello", "world", "how", "are", "you", "today", "friend")
_WIDTH, _HEADS = 64, 2
_WIDE = 2 * _WIDTH  # inside the feed-forward block


def write_trial_model(folder: Path) -> Path:
    """Write a Llama model that `mlx_lm.load` reads. Its answers are noise.

    No MLX is used, because in the doctor's process only the engine may touch it.

    Args:
        folder: where to write; it must exist.

    Returns:
        The folder.
    """
    from safetensors.numpy import save_file

    save_file(_weights(), folder / "model.safetensors", metadata={"format": "mlx"})
    for name, content in _texts().items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def _weights() -> dict[str, Any]:
    import numpy as np

    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (len(_WORDS), _WIDTH),
        "lm_head.weight": (len(_WORDS), _WIDTH),
        **{f"{layer}self_attn.{name}_proj.weight": (_WIDTH, _WIDTH) for name in "qkvo"},
        f"{layer}mlp.gate_proj.weight": (_WIDE, _WIDTH),
        f"{layer}mlp.up_proj.weight": (_WIDE, _WIDTH),
        f"{layer}mlp.down_proj.weight": (_WIDTH, _WIDE),
    }
    random = np.random.default_rng(0)
    weights = {name: random.normal(0.0, 0.1, shape) for name, shape in shapes.items()}
    weights["lm_head.weight"][0] = 0.0  # so the end is rarely the likeliest token
    for norm in (f"{layer}input_layernorm", f"{layer}post_attention_layernorm", "model.norm"):
        weights[f"{norm}.weight"] = np.ones(_WIDTH)
    return {name: weight.astype(np.float32) for name, weight in weights.items()}


def _texts() -> dict[str, dict[str, Any]]:
    """The JSON files beside the weights."""
    end = _WORDS[0]
    return {
        "config.json": {
            "model_type": "llama",
            "vocab_size": len(_WORDS),
            "hidden_size": _WIDTH,
            "intermediate_size": _WIDE,
            "num_hidden_layers": 1,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _HEADS,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
            "eos_token_id": 0,
        },
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": 0,
                    "content": end,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            ],
            "pre_tokenizer": {"type": "Whitespace"},
            "model": {
                "type": "WordLevel",
                "vocab": {word: number for number, word in enumerate(_WORDS)},
                "unk_token": end,
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": end,
            "clean_up_tokenization_spaces": False,
        },
    }
