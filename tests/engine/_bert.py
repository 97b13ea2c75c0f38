"""BERT's forward pass in numpy, one text at a time: what the engine's must equal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

_erf = np.vectorize(math.erf)


def bert_vector(folder: str | Path, ids: Sequence[int], *, pooling: str = "mean") -> Any:
    """The unit vector of a text, given as token ids."""
    config = json.loads((Path(folder) / "config.json").read_text())
    weights = {
        name.removeprefix("bert."): tensor.astype(np.float64)
        for name, tensor in load_file(Path(folder) / "model.safetensors").items()
        if tensor.dtype.kind == "f"
    }

    def linear(name: str, x: Any) -> Any:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    heads = config["num_attention_heads"]
    x = weights["embeddings.word_embeddings.weight"][list(ids)]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + weights["embeddings.token_type_embeddings.weight"][0])
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"

        def split(name: str, x: Any = x, layer: str = layer) -> Any:
            projected = linear(f"{layer}.attention.self.{name}", x)
            return projected.reshape(len(ids), heads, -1).transpose(1, 0, 2)

        query, key, value = split("query"), split("key"), split("value")
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ value
        mixed = linear(f"{layer}.attention.output.dense", mixed.transpose(1, 0, 2).reshape(x.shape))
        x = norm(f"{layer}.attention.output.LayerNorm", mixed + x)
        inner = linear(f"{layer}.intermediate.dense", x)
        inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
        x = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", inner) + x)
    vector = x.mean(0) if pooling == "mean" else x[0]
    return vector / np.linalg.norm(vector)
