"""Whether a model's requests may share a batch.

mlx-lm merges the caches of every model that has the method for it. But the layers of
some of them (mamba, RWKV) take the padding of shorter rows for tokens, which changes
their answers without an error, and those of others (gemma2) cannot take its mask.
So each model is asked, by a few tokens, when it is loaded.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.generate import PromptProcessingBatch
from mlx_lm.models.cache import make_prompt_cache

_PROMPTS = [list(range(1, 11)), [3, 2]]
# Of the spread of a row's logits. Another order of sums moves them by far less; eight
# tokens of padding move them about as much as another prompt does.
_TOLERANCE = 0.1


_known: dict[tuple[type, ...], bool] = {}  # by the classes of a model and of its caches


def batchable(model: Any) -> bool:
    """Whether rows of unequal length come out of a batch as they do alone.

    The first model of an architecture is tried; the others of the process are like it.
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
        difference = mx.abs(_logits(model, _PROMPTS) - alone)
        return bool(mx.all(mx.mean(difference, axis=-1) < _TOLERANCE * mx.std(alone, axis=-1)))
    except Exception:  # whatever its layers say to a mask they do not know
        return False


def _logits(model: Any, prompts: list[list[int]]) -> mx.array:
    """The logits after each of these prompts, computed as one batch."""
    batch = PromptProcessingBatch(
        model, list(range(len(prompts))), [make_prompt_cache(model) for _ in prompts]
    )
    batch.prompt([prompt[:-1] for prompt in prompts])
    last = mx.array([prompt[-1:] for prompt in prompts])
    logits: mx.array = model(last, cache=batch.prompt_cache)[:, -1]
    return logits.astype(mx.float32)
