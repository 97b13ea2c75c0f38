"""How texts are put together; their contents do not matter, only their lengths."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlx_guarded_llm.engine.decode.microbatch import EncodedTexts, MicroBatches

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def encoded(name: str, *lengths: int) -> EncodedTexts:
    return EncodedTexts(name, [np.zeros(length, dtype=np.int32) for length in lengths])


def lengths(batches: MicroBatches) -> list[tuple[str, int]]:
    return [(encoded.request_id, len(encoded.texts[i])) for encoded, i in batches.next()]


def test_a_query_waits_for_one_micro_batch_of_a_long_job() -> None:
    batches = MicroBatches(100)
    batches.add(encoded("long", *[50] * 20))
    batches.add(encoded("query", 5))
    assert lengths(batches) == [("long", 50), ("long", 50)]
    assert lengths(batches) == [("query", 5)]
    assert lengths(batches) == [("long", 50), ("long", 50)]


def test_queries_that_came_together_are_computed_together() -> None:
    batches = MicroBatches(100)
    batches.add(encoded("long", *[50] * 20))
    for i in range(5):
        batches.add(encoded(f"query {i}", 6 + i % 2))
    batches.next()
    assert [name for name, _ in lengths(batches)] == [f"query {i}" for i in (0, 2, 4)]
    # The one that leads decides how long the others may be.
    assert [name for name, _ in lengths(batches)] == ["query 1", "query 3"]
    assert len(batches) == 1


def test_texts_of_a_like_length_ride_along() -> None:
    batches = MicroBatches(40)
    batches.add(encoded("a", 10))
    batches.add(encoded("b", 9, 11, 4, 5, 7))
    assert lengths(batches) == [("a", 10), ("b", 9), ("b", 7), ("b", 5)]
    assert lengths(batches) == [("b", 11)]
    assert lengths(batches) == [("b", 4)]
    assert len(batches) == 0


def test_a_text_that_is_too_long_goes_alone() -> None:
    batches = MicroBatches(10)
    batches.add(encoded("a", 30, 9, 31))
    assert [lengths(batches) for _ in range(3)] == [[("a", 31)], [("a", 30)], [("a", 9)]]


def test_a_job_that_is_removed_has_no_more_texts() -> None:
    batches = MicroBatches(10)
    batches.add(encoded("a", 10, 10))
    batches.add(encoded("b", 10))
    batches.next()
    batches.remove("a")
    batches.remove("unknown")
    assert lengths(batches) == [("b", 10)]
    assert len(batches) == 0


@given(requests=st.lists(LENGTHS, min_size=1, max_size=6), most=st.integers(1, 100))
def test_every_text_comes_once_and_a_micro_batch_is_bounded(
    requests: list[list[int]], most: int
) -> None:
    batches = MicroBatches(most)
    for name, texts in enumerate(requests):
        batches.add(encoded(str(name), *texts))
    seen: Counter[tuple[str, int]] = Counter()
    led: list[str] = []
    while batches:
        rows = batches.next()
        longest = max(len(encoded.texts[i]) for encoded, i in rows)
        assert len(rows) == 1 or len(rows) * longest <= most
        assert all(2 * len(encoded.texts[i]) >= longest for encoded, i in rows)
        seen.update((encoded.request_id, i) for encoded, i in rows)
        led.append(rows[0][0].request_id)
        # Nobody leads twice while another that waits has not led.
        assert len(led) < 2 or led[-1] != led[-2] or len(batches) <= 1
    assert seen == {(str(n), i): 1 for n, texts in enumerate(requests) for i in range(len(texts))}
