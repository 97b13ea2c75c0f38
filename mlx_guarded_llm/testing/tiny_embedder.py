"""Make a small but real embedding model for tests, in milliseconds and without MLX."""

from __future__ import annotations

import string
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mlx_guarded_llm.testing.tokenizer_files import write_json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation


def make_tiny_embedder(
    folder: str | Path,
    *,
    seed: int = 0,
    hidden_size: int = 32,
    layers: int = 2,
    context_window: int = 64,
    pooling: str | None = None,
    nan: bool = False,
) -> Path:
    """Write a BERT with random weights and a WordPiece tokenizer.

    A text has two special tokens and one token for each character but spaces, which it
    knows if they are of ASCII. Different texts have different vectors.

    Args:
        folder: where to write; made if missing.
        seed: the same seed gives the same bytes.
        hidden_size: of the vectors too; a multiple of 4.
        layers: number of layers.
        context_window: tokens of the longest text, special tokens included.
        pooling: "mean" or "cls", written as sentence-transformers does; None writes none.
        nan: every vector is NaN.

    Returns:
        The folder.
    """
    pieces = [*SPECIAL, *_CHARACTERS, *(f"##{c}" for c in _CHARACTERS)]
    config: dict[str, Any] = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": context_window,
        "type_vocab_size": 2,
        "vocab_size": len(pieces),
        "pad_token_id": 0,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    tensors: dict[str, Any] = {}
    for name, shape in _shapes(config).items():
        # A generator per tensor, as in `make_tiny_model`.
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        spread = 1.0 if "embeddings" in name else 2.0 / np.sqrt(shape[-1])
        tensor = random.normal(0.0, spread, shape)
        if "LayerNorm" in name:
            tensor = np.full(shape, float(name.endswith("weight")))
        tensors[name] = tensor.astype(np.float32)
    if nan:
        tensors["embeddings.LayerNorm.weight"][:] = np.nan

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder, pieces, context_window)
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        modes = {
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
        }
        write_json(folder / "1_Pooling" / "config.json", modes)
    return folder


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a BERT, by the names of transformers."""
    size, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], size),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], size),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], size),
        "pooler.dense.weight": (size, size),
        "pooler.dense.bias": (size,),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        linears = {
            "attention.self.query": (size, size),
            "attention.self.key": (size, size),
            "attention.self.value": (size, size),
            "attention.output.dense": (size, size),
            "intermediate.dense": (inner, size),
            "output.dense": (size, inner),
        }
        for name, shape in linears.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for norm in norms:
        shapes |= {f"{norm}.weight": (size,), f"{norm}.bias": (size,)}
    return shapes


def _write_tokenizer(folder: Path, pieces: list[str], context_window: int) -> None:
    tokenizer = {
        "version": "1.0",
        # As in many real folders. Code that loads the model must ignore them.
        "truncation": {
            "direction": "Right",
            "max_length": context_window // 2,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, token in enumerate(SPECIAL)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                token: {"id": token, "ids": [pieces.index(token)], "tokens": [token]}
                for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 2_000,
            "vocab": {piece: number for number, piece in enumerate(pieces)},
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "model_max_length": context_window,
    }
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", config)
