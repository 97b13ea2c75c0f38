"""Models of well-known shapes with random 4-bit weights, made in seconds.

    python -m benchmarks.shapes llama-8b FOLDER

Speed and memory depend on shapes, not on what the weights have learnt. One layer is
drawn and written again for every layer; run it in a process of its own, because it
uses MLX on its main thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_guarded_llm import Catalog
from mlx_guarded_llm.testing.tokenizer_files import build_vocabulary, write_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a llama-like model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    bits: int | None = 4


SHAPES = {
    "llama-70b": Shape(8192, 80, 64, 8, 28672, 128256),
    "llama-8b": Shape(4096, 32, 32, 8, 14336, 128256),
    "llama-8b-bf16": Shape(4096, 32, 32, 8, 14336, 128256, None),  # 16 GB
    "phi3-mini": Shape(3072, 32, 32, 32, 8192, 32064),
    "qwen-0.5b": Shape(896, 24, 14, 2, 4864, 151936),
    "mini": Shape(512, 8, 8, 4, 1536, 49152, None),  # 150 MB, quick on a CPU
    "tiny": Shape(256, 4, 4, 2, 512, 8192, None),
}


def make_shape(name: str, folder: Path, *, seed: int = 0, dtype: str = "bfloat16") -> Path:
    """Write a model folder of this shape, if it is not there yet.

    Args:
        name: one of `SHAPES`.
        folder: where; made if missing.
        seed: of the random weights.
        dtype: of what is not quantised. In bfloat16 several tokens are often exactly as
            likely, and which one is greedy depends on how a batch is computed; in float32
            texts can be compared.
    """
    import mlx.core as mx

    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[name]
    mx.random.seed(seed)
    kind = getattr(mx, dtype)
    index: dict[str, str] = {}

    def save(file: str, tensors: dict[str, Any]) -> None:
        mx.save_safetensors(str(folder / file), tensors, metadata={"format": "mlx"})
        index.update(dict.fromkeys(tensors, file))

    ends: dict[str, Any] = {"model.norm.weight": mx.ones(shape.hidden, kind)}
    ends |= _matrix("model.embed_tokens", shape.vocabulary, shape.hidden, shape.bits, kind)
    ends |= _matrix("lm_head", shape.vocabulary, shape.hidden, shape.bits, kind)
    save("model-ends.safetensors", ends)
    layer = _layer(shape, kind)
    mx.eval(layer)
    for i in range(shape.layers):
        tensors = {f"model.layers.{i}.{key}": value for key, value in layer.items()}
        save(f"model-layer-{i:03}.safetensors", tensors)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    vocabulary = build_vocabulary(merges_up_to=shape.vocabulary)
    write_tokenizer(folder, vocabulary, chat_template=TEMPLATE, context_window=8192)
    (folder / "config.json").write_text(json.dumps(_config(shape, vocabulary.eos_token_id)))
    return folder


def _layer(shape: Shape, kind: Any) -> dict[str, Any]:
    import mlx.core as mx

    head = shape.hidden // shape.heads
    sizes = {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (shape.kv_heads * head, shape.hidden),
        "self_attn.v_proj": (shape.kv_heads * head, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
    layer = {name: mx.ones(shape.hidden, kind) for name in norms}
    for key, (rows, columns) in sizes.items():
        layer |= _matrix(key, rows, columns, shape.bits, kind)
    return layer


def _matrix(key: str, rows: int, columns: int, bits: int | None, kind: Any) -> dict[str, Any]:
    import mlx.core as mx

    weight = (mx.random.normal((rows, columns)) * columns**-0.5).astype(kind)
    if bits is None:
        return {f"{key}.weight": weight}
    packed, scales, biases = mx.quantize(weight, group_size=64, bits=bits)
    return {f"{key}.weight": packed, f"{key}.scales": scales, f"{key}.biases": biases}


def _config(shape: Shape, eos: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-5,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "eos_token_id": eos,
    }
    if shape.bits is not None:
        config["quantization"] = {"group_size": 64, "bits": shape.bits}
    return config


@contextmanager
def chosen(
    shape: str | None, model: str, *, dtype: str = "bfloat16"
) -> Iterator[tuple[str, str, Catalog]]:
    """The model a benchmark was asked for: its name, its folder, and the catalog for both.

    Args:
        shape: one of `SHAPES`, made for the occasion; None takes `model`.
        model: a name for the catalog.
        dtype: of a shape; see `make_shape`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if shape is not None:
            model = str(Path(scratch) / shape)
            command = [sys.executable, "-m", "benchmarks.shapes", shape, model, "--dtype", dtype]
            subprocess.run(command, check=True)
        catalog = Catalog()
        yield model, str(catalog.ensure(catalog.resolve(model)).path), catalog


def device_name() -> str:
    """What MLX computes on; for `backend.run`."""
    import mlx.core as mx

    return str(mx.device_info().get("device_name"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    args = parser.parse_args()
    make_shape(args.shape, args.folder, seed=args.seed, dtype=args.dtype)


if __name__ == "__main__":
    main()
