"""Model folders made by hand: right ones, and ones broken in a chosen way."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from mlx_guarded_llm.models import ModelSpec

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}
TENSORS = {
    "model.embed_tokens.weight": ("F16", (8, 4)),
    "model.norm.weight": ("F16", (4,)),
}
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 8,
    "max_position_embeddings": 128,
}


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]] = TENSORS, *, fill: int = 1
) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + prod(shape) * WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes([fill]) * end)
    return path


def make_folder(path: Path, config: Mapping[str, Any] | None = None, *, fill: int = 1) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (path / "tokenizer.json").write_text("{}")
    write_safetensors(path / "model.safetensors", fill=fill)
    return path


def make_adapter(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    config = {"num_layers": 1, "lora_parameters": {"rank": 2}}
    (path / "adapter_config.json").write_text(json.dumps(config))
    write_safetensors(path / "adapters.safetensors", {"lora_a": ("F32", (4, 2))})
    return path


def folder_spec(path: Path, **options: Any) -> ModelSpec:
    return ModelSpec(name="mine", kind="folder", location=str(path), **options)
