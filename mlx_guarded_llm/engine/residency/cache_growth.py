"""How KV caches grow on CUDA, so that the same request gives the same tokens from run to run.

For the attention of a single query MLX on CUDA has two kernels: its own, and cuDNN's, which it
takes where a cache holds 256 tokens and its buffer has room for a multiple of 256. That is what
mlx-lm's `KVCache` grows by. cuDNN's can give other bits from call to call, with the same arrays, so
greedy answers that pass position 256 differ from run to run. MLX's own did not. With caches of
another size it is always taken. Up to some thousand tokens it is no slower.
`benchmarks/repeat.py` measures both.

Caches of a batch are not touched: their attention has a mask, with which cuDNN's is not taken.
"""

from __future__ import annotations

from typing import Any

from mlx_lm.models.cache import KVCache

CUDNN_STEP = 256  # tokens: `kv_cache_step` of MLX's CUDA back end


def keep_own_attention() -> None:
    """Have mlx-lm's caches grow to sizes that are no multiple of 256, for the whole process."""
    kind: Any = KVCache
    kind.step = property(_step)


def _step(cache: KVCache) -> int:
    """How many tokens, or a multiple of it, a cache that is full grows by."""
    return CUDNN_STEP if cache.offset % CUDNN_STEP else CUDNN_STEP - 1
