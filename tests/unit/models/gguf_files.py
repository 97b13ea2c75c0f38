"""Writes small GGUF files, with the values that each of their blocks decodes to."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12}
HIDDEN, INNER, VOCAB = 64, 96, 12

# A byte-level vocabulary: three special tokens, letters and two merges.
TOKENS = ["<unk>", "<bos>", "<eos>", "a", "b", "c", "ab", "abc", "1", "2", "Ġ", "Ġa"]
BYTE_PAIR: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 3] + [1] * 9,
    "tokenizer.ggml.merges": ["a b", "ab c", "Ġ a"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": "{{ messages[0]['content'] }}",
}
LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 128,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    **BYTE_PAIR,
}
SHAPES = {
    "token_embd.weight": (VOCAB, HIDDEN),
    "output_norm.weight": (HIDDEN,),
    "blk.0.attn_norm.weight": (HIDDEN,),
    "blk.0.attn_q.weight": (HIDDEN, HIDDEN),
    "blk.0.attn_k.weight": (HIDDEN // 2, HIDDEN),
    "blk.0.attn_v.weight": (HIDDEN // 2, HIDDEN),
    "blk.0.attn_output.weight": (HIDDEN, HIDDEN),
    "blk.0.ffn_norm.weight": (HIDDEN,),
    "blk.0.ffn_gate.weight": (INNER, HIDDEN),
    "blk.0.ffn_up.weight": (INNER, HIDDEN),
    "blk.0.ffn_down.weight": (HIDDEN, INNER),
}

Values = npt.NDArray[np.float32]


def encode(kind: str, shape: tuple[int, ...], seed: int = 0) -> tuple[bytes, Values]:
    """Random content of a tensor: its bytes, and the numbers they stand for."""
    random = np.random.default_rng(seed)
    if kind in ("F32", "F16"):
        values = random.normal(0, 0.1, shape).astype(np.float32 if kind == "F32" else np.float16)
        return values.tobytes(), values.astype(np.float32)
    blocks = int(np.prod(shape)) // 32
    scale = random.uniform(0.01, 0.02, (blocks, 1)).astype(np.float16)
    scales = scale.astype(np.float32)
    if kind == "Q8_0":
        signed = random.integers(-127, 128, (blocks, 32)).astype(np.int8)
        data = np.concatenate([scale.view(np.uint8), signed.view(np.uint8)], axis=1)
        return data.tobytes(), (scales * signed).reshape(shape)
    if kind == "Q4_K":  # never decoded: 256 elements take 144 bytes
        return bytes(int(np.prod(shape)) // 256 * 144), np.zeros(shape, np.float32)
    nibbles = random.integers(0, 16, (blocks, 32)).astype(np.uint8)
    # The first half of a block lies in the low nibbles, the second in the high ones.
    packed = nibbles[:, :16] | nibbles[:, 16:] << 4
    if kind == "Q4_0":
        data = np.concatenate([scale.view(np.uint8), packed], axis=1)
        return data.tobytes(), (scales * (nibbles.astype(np.float32) - 8)).reshape(shape)
    low = random.uniform(-0.2, -0.1, (blocks, 1)).astype(np.float16)
    data = np.concatenate([scale.view(np.uint8), low.view(np.uint8), packed], axis=1)
    return data.tobytes(), (scales * nibbles + low.astype(np.float32)).reshape(shape)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any] = LLAMA,
    kinds: Mapping[str, str] | None = None,
    *,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    version: int = 3,
) -> dict[str, Values]:
    """Writes a file; `kinds` gives the types of the tensors, F32 for the others."""
    data, infos, values = b"", b"", {}
    for seed, (name, shape) in enumerate(shapes.items()):
        kind = (kinds or {}).get(name, "F32")
        content, values[name] = encode(kind, shape, seed)
        infos += _string(name) + struct.pack("<I", len(shape))
        infos += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        infos += struct.pack("<IQ", TYPES[kind], len(data))
        data += content + bytes(-len(content) % 32)
    head = b"GGUF" + struct.pack("<IQQ", version, len(shapes), len(metadata))
    head += b"".join(_string(key) + _value(value) for key, value in metadata.items()) + infos
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return values


def all_matrices(kind: str) -> dict[str, str]:
    return {name: kind for name, shape in SHAPES.items() if len(shape) == 2}


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _string(value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
        case [float(), *_]:
            return struct.pack("<IIQ", 9, 6, len(value)) + struct.pack(f"<{len(value)}f", *value)
        case _:
            return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
