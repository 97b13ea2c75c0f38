"""How much of a prompt's KV cache may be kept for the next prompt.

Caches differ in what they can do. Some claim that they can be trimmed but have dropped what is
needed then, some cannot be written to, some change when they are read. So each architecture is
tested once, when a model of it is loaded: a kept cache must give the same logits as a fresh one.
That takes a handful of passes of a few tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from ...logs import get_logger
from ..decode.batchable import alike
from ..decode.decoder import Kind
from .prefix import UNBOUNDED, detach

logger = get_logger("engine")

_PROMPT = [3, 7, 4, 9, 5, 8, 6, 11, 10, 2, 12, 1] * 2
_NEXT = [13, 4]
_LEFT = 5  # tokens of the prompt that the cache is trimmed to
# Attributes of caches that keep only the last tokens, and what they are set to for the test.
_WINDOWS = ("chunk_size", "max_size", "window_size")
_SMALL = 8

_known: dict[tuple[type, ...], tuple[bool, bool]] = {}


def keepable_tokens(model: Any) -> int:
    """The length of the longest prompt whose KV cache can be kept and reused, in tokens.

    Returns:
        0 if none can; the size of the smallest window if only prompts that fit into it can;
        `UNBOUNDED` if all can.
    """
    caches = make_prompt_cache(model)
    parts = list(_parts(caches))
    architecture = (type(model), *map(type, parts))
    if architecture not in _known:
        within = _same_when_kept(model, window=None)
        windowed = any(_windows(part) for part in parts)
        beyond = within and (not windowed or _same_when_kept(model, window=_SMALL))
        _known[architecture] = within, beyond
        if not beyond:
            logger.info("%s keeps no%s prompts", type(model).__module__, " long" * within)
    within, beyond = _known[architecture]
    if beyond:
        return UNBOUNDED
    return _smallest_window(parts) if within else 0


def trimmable_tokens(model: Any) -> int:
    """The length up to which its KV caches can be cut back to an earlier token, in tokens.

    Returns:
        0 if they never can; the size of the smallest window, if they have any; `UNBOUNDED` else.
    """
    caches = make_prompt_cache(model)
    if not keepable_tokens(model) or not can_trim_prompt_cache(caches):
        return 0
    return _smallest_window(_parts(caches))


def kept_kinds(model: Any) -> frozenset[Kind]:
    """The kinds of boundaries in a prompt at which caches of this model are kept.

    Where caches can always be trimmed, the next turn of a chat uses the one that is kept when the
    answer ends. Before that, only what other requests may share is worth keeping. Where they
    cannot, the next turn needs one of before the answer: templates drop its reasoning, or write
    its calls in another way.
    """
    if trimmable_tokens(model) == UNBOUNDED:
        return frozenset({"system"})
    return frozenset({"system", "user"})


def _same_when_kept(model: Any, *, window: int | None) -> bool:
    """Whether a kept cache gives the same logits as a fresh one."""
    try:
        kept = _fresh(model, window)
        half = len(_PROMPT) // 2
        _run(model, kept, _PROMPT[:half])
        _run(model, kept, _PROMPT[half:])
        detach(kept)
        kept = copy.deepcopy(kept)
        left = _PROMPT
        if can_trim_prompt_cache(kept):
            left = _PROMPT[:_LEFT]
            trim_prompt_cache(kept, len(_PROMPT) - _LEFT)
        again = _run(model, kept, _NEXT)
        fresh = _fresh(model, window)
        if len(left) > half:
            _run(model, fresh, left[:half])
            _run(model, fresh, left[half:])
        else:
            _run(model, fresh, left)
        return alike(again, _run(model, fresh, _NEXT))
    except Exception:  # caches raise different types when they cannot do this
        return False


def _fresh(model: Any, window: int | None) -> list[Any]:
    """Empty caches, with windows of this size if it is given."""
    caches: list[Any] = make_prompt_cache(model)
    if window is not None:
        for part in _parts(caches):
            for name in _windows(part):
                setattr(part, name, window)
    return caches


def _parts(caches: Any) -> Iterator[Any]:
    """Caches, and the caches that they consist of."""
    for cache in caches:
        yield cache
        inner = getattr(cache, "caches", ())
        yield from _parts(inner if isinstance(inner, list | tuple) else ())


def _smallest_window(parts: Iterable[Any]) -> int:
    """In tokens; `UNBOUNDED` if there is none."""
    return min((size for part in parts for size in _windows(part).values()), default=UNBOUNDED)


def _windows(cache: Any) -> dict[str, int]:
    sizes = {name: getattr(cache, name, None) for name in _WINDOWS}
    return {name: size for name, size in sizes.items() if isinstance(size, int) and size > 0}


def _run(model: Any, caches: list[Any], tokens: list[int]) -> mx.array:
    """The logits after these tokens, of shape (1, vocabulary)."""
    logits: mx.array = model(mx.array([tokens]), cache=caches)[:, -1].astype(mx.float32)
    mx.eval(logits)
    return logits
