"""Whether a model's requests may share a batch.

mlx-lm merges the caches of every model that has the method for it. But some of these (mamba,
RWKV) treat the padding of shorter rows as tokens, which silently changes their answers, and
others (gemma2) do not accept the mask. So each architecture is tested with a few tokens when a
model of it is loaded.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.generate import PromptProcessingBatch
from mlx_lm.models.cache import make_prompt_cache

_PROMPTS = [list(range(1, 11)), [3, 2]]
# As a fraction of the standard deviation of a row's logits. Another order of summation changes
# them by far less; eight tokens of padding change them about as much as another prompt does.
_TOLERANCE = 0.1


_known: dict[tuple[type, ...], bool] = {}  # by the classes of a model and of its caches


def batchable(model: Any) -> bool:
    """Whether rows of unequal length give the same results in a batch as alone.

    Only the first model of an architecture is tested in each process.
    """
    caches = make_prompt_cache(model)
    architecture = (type(model), *map(type, caches))
    if architecture not in _known:
        merges = all(hasattr(cache, "merge") for cache in caches)
        _known[architecture] = merges and _same_in_a_batch(model)
    return _known[architecture]


def _same_in_a_batch(model: Any) -> bool:
    alone = mx.concatenate([_logits(model, [prompt]) for prompt in _PROMPTS])
    try:
        return alike(_logits(model, _PROMPTS), alone)
    except Exception:  # layers raise different types for a mask they cannot use
        return False


def alike(some: mx.array, others: mx.array) -> bool:
    """Whether two arrays of logits, of shape (rows, vocabulary), are about the same."""
    difference = mx.abs(some - others)
    return bool(mx.all(mx.mean(difference, axis=-1) < _TOLERANCE * mx.std(others, axis=-1)))


def _logits(model: Any, prompts: list[list[int]]) -> mx.array:
    """The logits after each of these prompts, computed as one batch."""
    batch = PromptProcessingBatch(
        model, list(range(len(prompts))), [make_prompt_cache(model) for _ in prompts]
    )
    batch.prompt([prompt[:-1] for prompt in prompts])
    last = mx.array([prompt[-1:] for prompt in prompts])
    logits: mx.array = model(last, cache=batch.prompt_cache)[:, -1].astype(mx.float32)
    mx.eval(logits)  # one pass at a time: ranks that share the model need not order two alike
    return logits
