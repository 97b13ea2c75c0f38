"""Checking that the sizes in a config are those of the weights.

mlx-lm builds what the config says before it looks at a tensor. So a wrong number can take all of
the machine's memory, long before a tensor is found not to fit.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from .config import text_config
from .files import UnreadableFile
from .numbers import MAX_LAYERS, Numbers
from .safetensors import Tensor

_SIZE = re.compile(r"(num|n)_\w+|\w+_(size|dim|heads|layers|experts|rank)|d_model|head_dim|n_\w+")
_LARGEST = 2**31 - 1  # of a dimension in MLX
_NUMBERED = re.compile(r"(.*?)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_EMBEDDING = re.compile(
    r"(.*\.)?(embed_tokens|embed_in|embeddings?|tok_embeddings|word_embeddings|wte)\.weight"
)
_NO_TEXT = re.compile(r"(vision|visual|audio|image|position|patch|token_type)")


def check_sizes(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Compare a config with the tensors.

    Raises:
        UnreadableFile: it says more than the weights have.
    """
    text = text_config(config)
    _check_range(text)
    numbers = Numbers(text)
    _check_count("layers", numbers.declared_layers, _layers(tensors) or MAX_LAYERS)
    if experts := numbers.experts:
        _check_count("experts", experts, max(_experts(tensors), 1))
    dimensions = {n for tensor in tensors.values() for n in tensor.shape}
    if numbers.hidden > 1 and numbers.hidden not in dimensions:
        raise UnreadableFile(
            f"config.json has hidden states of {numbers.hidden} numbers, and no tensor of the "
            "weights has that size"
        )
    size, rows = text.get("vocab_size"), _rows(tensors)
    if size is not None and (type(size) is not int or size < 1):
        raise UnreadableFile(f"config.json has the vocab_size {str(size)[:80]}")
    if size and rows and size > max(rows):
        raise UnreadableFile(
            f"config.json has a vocabulary of {size} tokens, and the weights one of {max(rows)}"
        )


def embedding_rows(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """How many tokens have an embedding; 0 if unknown.

    A larger id would be read from memory beyond the embedding.
    """
    rows = _rows(tensors)
    size = text_config(config).get("vocab_size")
    if size in rows:
        return int(size)
    return min(rows, default=size if type(size) is int and size > 0 else 0)


def activation_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of one activation: norms or embeddings in float32 make all activations float32."""
    decisive = Counter(
        tensor.dtype
        for name, tensor in tensors.items()
        if tensor.dtype in ("F16", "BF16", "F32") and ("norm" in name or "embed" in name)
    )
    return 4 if not decisive or decisive.most_common(1)[0][0] == "F32" else 2


def _rows(tensors: Mapping[str, Tensor]) -> set[int]:
    return {
        tensor.shape[0]
        for name, tensor in tensors.items()
        if len(tensor.shape) == 2 and _EMBEDDING.fullmatch(name) and not _NO_TEXT.search(name)
    }


def _check_range(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if _SIZE.fullmatch(key) and type(value) is int and abs(value) > _LARGEST:
            raise UnreadableFile(f"config.json has the {key} {value:.6g}; {_LARGEST} is the most")


def _check_count(what: str, said: int, found: int) -> None:
    if said > found:
        raise UnreadableFile(f"config.json has {said} {what}, and the weights have {found}")


def _layers(tensors: Mapping[str, Tensor]) -> int:
    """The number of layers in the largest stack of the weights."""
    stacks: dict[str, int] = defaultdict(int)
    for name in tensors:
        if match := _NUMBERED.match(name):
            stack, number = match.groups()
            stacks[stack] = max(stacks[stack], int(number) + 1)
    return max(stacks.values(), default=0)


def _experts(tensors: Mapping[str, Tensor]) -> int:
    """The largest number of experts in a layer of the weights."""
    alone = (int(m.group(1)) + 1 for name in tensors if (m := _EXPERT.search(name)))
    stacked = (t.shape[0] for t in tensors.values() if len(t.shape) >= 2)
    return max((*alone, *stacked), default=0)
