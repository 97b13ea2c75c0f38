"""The llama architecture of GGUF, in the names and the config of mlx-lm."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from ...errors import ModelInvalid, ModelUnsupported
from .header import GGUFHeader

GROUP_SIZE = 32  # elements that share a scale in Q4_0, Q4_1 and Q8_0
BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}

_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)")


def check_llama(header: GGUFHeader, source: str) -> None:
    """Check that a file is a llama model, all of whose tensors can be imported.

    Args:
        header: of the file.
        source: names the file in messages.

    Raises:
        ModelUnsupported: it is another architecture or a mixture of experts, or has an unknown
            tensor; the message names it.
        ModelInvalid: metadata or tensors are missing or have the wrong shape.
    """
    architecture = header.metadata.get("general.architecture")
    if architecture != "llama":
        raise ModelUnsupported(
            f"{source} is of the architecture {architecture!r}; only llama is imported.",
            hint="Use a safetensors version of the model, which mlx-lm reads directly.",
        )
    if experts := header.metadata.get("llama.expert_count"):
        raise ModelUnsupported(
            f"{source} is a mixture of {experts} experts, which is not imported.",
            hint="Use a safetensors version of the model.",
        )
    shapes = _expected_shapes(header, source)
    for name, shape in shapes.items():
        if name not in header.tensors:
            raise ModelInvalid(f"{source} has no tensor {name}.", hint="Download it again.")
        if header.tensors[name].shape != shape:
            raise ModelInvalid(
                f"{source}: tensor {name} is {header.tensors[name].shape}, not {shape}.",
                hint="Download it again.",
            )
    for name in header.tensors:
        if name not in shapes and name != "output.weight":
            raise ModelUnsupported(
                f"{source}: tensor {name} has no place in mlx-lm's llama.",
                hint="Use a safetensors version of the model.",
            )


def _expected_shapes(header: GGUFHeader, source: str) -> dict[str, tuple[int, ...]]:
    config = llama_config(header, source)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    block = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config["vocab_size"], hidden),
        "output_norm.weight": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def llama_config(header: GGUFHeader, source: str, *, quantised: bool = False) -> dict[str, Any]:
    """The config.json of the imported model.

    Args:
        header: of the file.
        source: names the file in messages.
        quantised: keep the quantised layers of the file, and say so in the config.

    Raises:
        ModelInvalid: a key is missing or has an invalid value.
        ModelUnsupported: it uses an unsupported variant of rotary embedding.
    """
    heads = _integer(header, source, "attention.head_count")
    hidden = _integer(header, source, "embedding_length")
    if hidden % heads:
        raise _senseless(source, "llama.attention.head_count", heads)
    head_dim = _integer(header, source, "attention.key_length", hidden // heads)
    rotated = _integer(header, source, "rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise ModelUnsupported(
            f"{source} rotates {rotated} of {head_dim} dimensions, which is not imported.",
            hint="Use a safetensors version of the model.",
        )
    metadata = header.metadata
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": _integer(header, source, "feed_forward_length"),
        "num_hidden_layers": _integer(header, source, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _integer(header, source, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": len(metadata.get("tokenizer.ggml.tokens", ())),
        "max_position_embeddings": _integer(header, source, "context_length"),
        "rms_norm_eps": _number(header, source, "attention.layer_norm_rms_epsilon"),
        "rope_theta": _number(header, source, "rope.freq_base", 10000.0),
        # llama.cpp permutes the rows of q and k so that pairs to rotate are adjacent.
        "rope_traditional": True,
        "rope_scaling": _rope_scaling(header, source),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
    }
    if quantised and (layers := _layer_bits(header)):
        usual = Counter(layers.values()).most_common(1)[0][0]
        config["quantization"] = {
            "group_size": GROUP_SIZE,
            "bits": usual,
            **{
                layer: {"group_size": GROUP_SIZE, "bits": bits}
                for layer, bits in layers.items()
                if bits != usual
            },
        }
    return config


def mlx_name(name: str) -> str:
    """The mlx-lm name of a tensor: blk.3.attn_q.scales -> model.layers.3. ... .scales."""
    stem, _, part = name.rpartition(".")
    if match := _BLOCK.fullmatch(stem):
        return f"model.layers.{match[1]}.{_INNER[match[2]]}.{part}"
    return f"{_OUTER[stem]}.{part}"


def _layer_bits(header: GGUFHeader) -> dict[str, int]:
    return {
        mlx_name(name).removesuffix(".weight"): BITS[info.type]
        for name, info in header.tensors.items()
        if info.type in BITS
    }


def _rope_scaling(header: GGUFHeader, source: str) -> dict[str, Any] | None:
    kind = header.metadata.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"type": "linear", "factor": _number(header, source, "rope.scaling.factor")}
    raise ModelUnsupported(
        f"{source} uses {kind!r} rope scaling, which is not imported.",
        hint="Use a safetensors version of the model.",
    )


def _integer(header: GGUFHeader, source: str, key: str, default: int | None = None) -> int:
    value = header.metadata.get(f"llama.{key}", default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise _senseless(source, f"llama.{key}", value)
    return value


def _number(header: GGUFHeader, source: str, key: str, default: float | None = None) -> float:
    value = header.metadata.get(f"llama.{key}", default)
    if not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise _senseless(source, f"llama.{key}", value)
    return float(value)


def _senseless(source: str, key: str, value: object) -> ModelInvalid:
    if value is None:
        return ModelInvalid(f"{source} has no {key}.", hint="Download it again.")
    return ModelInvalid(f"{source}: {key} is {value!r:.80}.", hint="Download it again.")
