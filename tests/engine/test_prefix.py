"""Which KV caches are kept for prompts that begin alike, and which go first."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache

from mlx_guarded_llm.engine.residency.prefix import PrefixCache, PrefixCaches

STEP = 2 * 4 * 256  # bytes of a `cut` cache of up to 256 tokens


def cut(tokens: list[int]) -> list[Any]:
    """A cache that can be cut back; it holds the tokens themselves, four bytes each, twice."""
    cache = KVCache()
    held = mx.array(tokens, dtype=mx.float32)[None, None, :, None]
    cache.update_and_fetch(held, held)
    return [cache]


def whole(tokens: list[int]) -> list[Any]:
    """A cache that cannot be cut back, of 4 bytes."""
    cache = ArraysCache(1)
    cache[0] = mx.array([float(len(tokens))])
    return [cache]


def held(cache: list[Any] | None) -> list[int]:
    """The tokens that a cache of `cut` holds."""
    assert cache is not None
    keys, _ = cache[0].keys_and_values()
    return [int(token) for token in keys[0, 0, :, 0].tolist()]


def keep(prefix: PrefixCache, *tokens: int) -> None:
    prefix.insert(list(tokens), cut(list(tokens)), "assistant")


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ([1, 2, 3, 4], [1, 2, 3]),  # all but one token of what is kept
        ([1, 2, 3, 4, 5], [1, 2, 3, 4]),
        ([1, 2, 3], [1, 2]),
        ([1, 2, 7, 8], [1, 2]),
        ([1], []),
        ([7, 1, 2, 3], []),
    ],
)
def test_the_longest_beginning_is_found(prompt: list[int], kept: list[int]) -> None:
    prefix = PrefixCaches(2**20).open("m")
    keep(prefix, 1, 2, 3, 4)
    cache, rest = prefix.fetch(prompt)
    assert rest == prompt[len(kept) :]
    assert (held(cache) if kept else cache) == (kept or None)


def test_what_is_kept_is_never_written_to() -> None:
    prefix = PrefixCaches(2**20).open("m")
    keep(prefix, 1, 2, 3, 4)
    for other in (8, 9):
        cache, _ = prefix.fetch([1, 2, other, other])
        assert cache is not None
        new = mx.full((1, 1, 2, 1), other, dtype=mx.float32)
        cache[0].update_and_fetch(new, new)
        assert held(cache) == [1, 2, other, other]
    assert held(prefix.fetch([1, 2, 3, 4, 5])[0]) == [1, 2, 3, 4]


def test_where_nothing_can_be_cut_only_whole_entries_are_found() -> None:
    prefix = PrefixCaches(2**20).open("m")
    for tokens in ([1, 2], [1, 2, 3, 4]):
        prefix.insert(tokens, whole(tokens), "user")
    for prompt, found in (([1, 2, 3, 4, 5], 4), ([1, 2, 3, 4], 2), ([1, 2, 3, 9], 2), ([1, 2], 0)):
        cache, rest = prefix.fetch(prompt)
        assert rest == prompt[found:]
        assert (cache[0][0].item() if cache else 0) == found


def test_two_chats_in_turn_keep_their_last_turns() -> None:
    """Answers come back with other tokens, so no entry is the beginning of the next."""
    caches = PrefixCaches(4 * STEP)
    models = {name: caches.open(name) for name in "ab"}
    for turn in range(1, 20):
        for prefix in models.values():
            prompt = list(range(10 * turn))
            assert len(prefix.fetch([*prompt, 0])[1]) == 11  # what is new
            keep(prefix, *prompt, 10_000 + turn)
    assert caches.nbytes <= 4 * STEP


def test_an_old_turn_goes_before_another_models_chat() -> None:
    caches = PrefixCaches(2 * STEP)
    quiet, busy = caches.open("quiet"), caches.open("busy")
    keep(quiet, 1, 2, 3, 4)
    for turn in range(5):
        keep(busy, 1, 2, 3, 4, 5, 6, 7, 10 + turn)
    assert held(quiet.fetch([1, 2, 3, 4, 5])[0]) == [1, 2, 3, 4]
    assert held(busy.fetch([1, 2, 3, 4, 5, 6, 7, 14, 0])[0]) == [1, 2, 3, 4, 5, 6, 7, 14]


def test_what_was_used_stays_longer() -> None:
    caches = PrefixCaches(2 * STEP)
    prefix = caches.open("m")
    keep(prefix, 1, 2, 3)
    keep(prefix, 4, 5, 6)
    prefix.fetch([1, 2, 3, 0])
    keep(prefix, 7, 8, 9)
    assert prefix.fetch([4, 5, 6, 0])[0] is None
    assert held(prefix.fetch([1, 2, 3, 0])[0]) == [1, 2, 3]


def test_what_is_held_already_is_not_kept_twice() -> None:
    caches = PrefixCaches(2**20)
    prefix = caches.open("m")
    for tokens in ([1, 2, 3, 4], [1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5]):
        keep(prefix, *tokens)
        assert caches.nbytes == STEP
    assert held(prefix.fetch([1, 2, 3, 4, 5, 6])[0]) == [1, 2, 3, 4, 5]


def test_the_turn_of_a_user_outlasts_the_answers_to_it() -> None:
    caches = PrefixCaches(3 * 4)
    prefix = caches.open("m")
    prefix.insert([1, 2], whole([1, 2]), "user")
    for answer in range(5):
        assert prefix.fetch([1, 2, 3])[0] is not None
        tokens = [1, 2, 3, answer]
        prefix.insert(tokens, whole(tokens), "assistant")
    prefix.insert([1, 2, 7, 8], whole([1, 2, 7, 8]), "user")
    assert len(prefix.fetch([1, 2, 7, 8, 9])[1]) == 1


def test_a_model_takes_its_entries_along() -> None:
    caches = PrefixCaches(2**20)
    first, other = caches.open("m"), caches.open("n")
    keep(first, 1, 2, 3)
    keep(other, 4, 5, 6)
    again = caches.open("m")
    assert again.fetch([1, 2, 3, 4])[0] is None
    assert caches.nbytes == STEP
    caches.drop("n")
    caches.drop("n")
    assert caches.nbytes == 0


@pytest.mark.parametrize("max_bytes", [0, STEP - 1])
def test_what_does_not_fit_is_not_kept(max_bytes: int) -> None:
    caches = PrefixCaches(max_bytes)
    prefix = caches.open("m", max_tokens=4)
    keep(prefix, 1, 2, 3)
    assert (caches.nbytes, prefix.fetch([1, 2, 3, 4])[0]) == (0, None)
    wide = PrefixCaches(2**20)
    keep(wide.open("m", max_tokens=4), 1, 2, 3, 4, 5)
    assert wide.nbytes == 0
