"""Make small but real model folders for tests, in milliseconds and without MLX.

    make_tiny_model(folder)                       random weights, any supported type
    make_scripted_model(folder, "The answer.")    answers exactly that, to any prompt
    make_tiny_embedder(folder)                    vectors of texts

The first two are normal folders that `mlx_lm.load` reads, the last is one for
mlx-embeddings. No MLX is used to write them: only one thread of a process may touch MLX,
and in a test that is the engine's.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from mlx_guarded_llm.testing.architectures import ARCHITECTURES, Architecture, Shapes, Sizes
from mlx_guarded_llm.testing.chat_templates import Thinking, choose_template
from mlx_guarded_llm.testing.quantize import quantize
from mlx_guarded_llm.testing.scripted import make_scripted_model
from mlx_guarded_llm.testing.tiny_embedder import make_tiny_embedder
from mlx_guarded_llm.testing.tokenizer_files import (
    Vocabulary,
    build_vocabulary,
    write_json,
    write_tokenizer,
)

__all__ = ["make_scripted_model", "make_tiny_embedder", "make_tiny_model"]

Tensors = dict[str, npt.NDArray[Any]]


def make_tiny_model(
    folder: str | Path,
    *,
    architecture: str = "llama",
    seed: int = 0,
    vocab_size: int = 320,
    hidden_size: int = 64,
    layers: int = 2,
    context_window: int = 2048,
    quantize_bits: int | None = None,
    chat_template: bool | str | None = True,
    thinking: Thinking = False,
    tools: bool = False,
    tokenizer: Literal["bytes", "bpe"] = "bytes",
    dtype: Literal["float32", "float16"] = "float32",
    nan: bool = False,
) -> Path:
    """Write a model with random weights.

    Its answers are noise, mostly printable, and differ by prompt and seed. They run to
    `max_tokens`, because the end-of-turn token is unlikely.

    Args:
        folder: where to write; made if missing.
        architecture: one of `ARCHITECTURES`.
        seed: the same seed gives the same bytes.
        vocab_size: rows of the embedding; those beyond the tokenizer's vocabulary are never used.
        hidden_size: a multiple of 64.
        layers: number of layers.
        context_window: `max_position_embeddings` of the config.
        quantize_bits: 2, 4 or 8, in MLX's affine layout, or None.
        chat_template: True for ChatML, a Jinja text, or None for a base model.
        thinking: `<think>` and `</think>` are tokens; see `chatml` for "open".
        tools: the template makes mlx-lm choose its parser `json_tools`.
        tokenizer: "bytes" has one token per byte, so the length of a prompt in tokens
            is its length in UTF-8; "bpe" fills the vocabulary with merges.
        dtype: type of the weights, or of the scales of quantised weights.
        nan: every logit is NaN.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown architecture or sizes that do not fit together.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"no tiny model of type {architecture!r}; there are {known}")
    if hidden_size % 64:
        raise ValueError(f"hidden_size is {hidden_size}; it must be a multiple of 64")
    vocabulary = build_vocabulary(
        thinking=bool(thinking),
        tools=tools,
        merges_up_to=vocab_size if tokenizer == "bpe" else 0,
    )
    if len(vocabulary) > vocab_size:
        raise ValueError(f"vocab_size is {vocab_size}; the tokenizer has {len(vocabulary)}")

    kind = ARCHITECTURES[architecture]
    sizes = Sizes(vocab_size, hidden_size, layers, context_window)
    config: dict[str, Any] = {
        "model_type": architecture,
        "architectures": [architecture],
        "vocab_size": vocab_size,
        "max_position_embeddings": context_window,
        "eos_token_id": vocabulary.eos_token_id,
        "pad_token_id": vocabulary.padding_token_id,
        "torch_dtype": dtype,
        **kind.config(sizes),
    }
    tensors = _random_weights(kind, kind.shapes(sizes), vocabulary, seed, np.dtype(dtype))
    if nan:
        norm = "model.norm.weight" if "model.norm.weight" in tensors else "backbone.norm_f.weight"
        tensors[norm][:] = np.nan
    if quantize_bits is not None:
        tensors = _quantized(tensors, quantize_bits)
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": quantize_bits}

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    template = choose_template(chat_template, thinking=thinking, tools=tools)
    write_tokenizer(folder, vocabulary, chat_template=template, context_window=context_window)
    return folder


def _random_weights(
    kind: Architecture, shapes: Shapes, vocabulary: Vocabulary, seed: int, dtype: np.dtype[Any]
) -> Tensors:
    """Weights large enough that the layers, not the embedding, decide the next token."""
    loudness = _loudness(shapes, vocabulary)
    tensors: Tensors = {}
    for name, shape in shapes.items():
        # A generator per tensor: adding one never changes the others.
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if name.endswith(("norm.weight", "norm_f.weight")):
            tensor = np.full(shape, 1.0)
            if "post_" in name:
                tensor *= kind.post_norm
        elif name.endswith("A_log"):
            tensor = np.log(np.broadcast_to(np.arange(1.0, shape[1] + 1), shape))
        elif name.endswith(("mixer.D", "sinks")):
            tensor = np.ones(shape)
        elif name.endswith("bias"):
            tensor = random.normal(0.0, 0.1, shape)
        elif name.endswith(("embed_tokens.weight", "embeddings.weight")):
            tensor = random.normal(0.0, 0.3, shape)
            if "lm_head.weight" not in shapes:
                tensor *= loudness[:, None]
        elif name == "lm_head.weight":
            tensor = random.normal(0.0, 4.0 / np.sqrt(shape[-1]), shape) * loudness[:, None]
        else:
            tensor = random.normal(0.0, 2.0 / np.sqrt(shape[-1]), shape)
        tensors[name] = np.ascontiguousarray(tensor, dtype=dtype)
    return tensors


def _loudness(shapes: Shapes, vocabulary: Vocabulary) -> npt.NDArray[np.float64]:
    """A factor for each token's logit: highest for printable bytes, 0 for special tokens."""
    rows = next(shape[0] for name, shape in shapes.items() if "embed" in name)
    loudness = np.zeros(rows)
    loudness[: len(vocabulary.bpe)] = 1.0
    loudness[:32] = loudness[127:256] = 0.3
    return loudness


GROUP_SIZE = 64


def _quantized(tensors: Tensors, bits: int) -> Tensors:
    """Quantise every matrix whose rows divide into groups, as `mlx_lm.convert` does."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.shape[-1] % GROUP_SIZE or not name.endswith(".weight"):
            out[name] = tensor
            continue
        stem = name.removesuffix("weight")
        packed, scales, biases = quantize(tensor, bits=bits, group_size=GROUP_SIZE)
        out |= {name: packed, stem + "scales": scales, stem + "biases": biases}
    return out
