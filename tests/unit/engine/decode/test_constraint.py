"""What a thinking budget allows, token by token, without a grammar."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.engine.decode.constraint import Constraint, Thinking, next_tokens

UNHURRIED = settings(deadline=None)  # machines that build are busy

VOCABULARY = 40  # more than one word of the mask, and not a whole one
START, BLANK = 30, 31
ENDS = [(33,), (33, 34), (33, 33, 34), (33, 34, 33, 35)]
TOKENS = st.lists(st.sampled_from([0, 1, START, BLANK, 33, 34, 35]), max_size=40)


def constraint(form: Thinking) -> Constraint:
    return Constraint(None, vocabulary=VOCABULARY, thinking=form)


def allowed(one: Constraint) -> set[int]:
    """The tokens that may come next."""
    beside = constraint(Thinking(opened=False, start=START, end=(33,)))
    masks = next_tokens([beside, one])
    if masks is None:
        return set(range(VOCABULARY))
    assert np.all(masks[0] == 255)  # a row that is free stays so
    bits = np.unpackbits(masks[1], bitorder="little")
    return set(np.flatnonzero(bits[:VOCABULARY]).tolist())


def thought(tokens: list[int], form: Thinking) -> list[int] | None:
    """The tokens of the thinking with its end, as far as it came; None without any."""
    begin = 0
    if not form.opened:
        while begin < len(tokens) and tokens[begin] in form.blank:
            begin += 1
        if begin == len(tokens) or tokens[begin] != form.start:
            return None
        begin += 1
    rest = tokens[begin:]
    size = len(form.end)
    ends = (i for i in range(size, len(rest) + 1) if tuple(rest[i - size : i]) == form.end)
    return rest[: next(ends, len(rest))]


@UNHURRIED
@given(
    TOKENS,
    st.integers(0, 12),
    st.sampled_from(ENDS),
    st.booleans(),
    st.sampled_from([frozenset[int](), frozenset({BLANK})]),
    st.integers(0, 40),
)
def test_thinking_ends_with_its_budget(
    wished: list[int],
    budget: int,
    end: tuple[int, ...],
    opened: bool,
    blank: frozenset[int],
    cut: int,
) -> None:
    """A model wishes for any tokens at all, and dies once on the way."""
    form = Thinking(opened=opened, start=START, end=end, blank=blank, budget=budget)
    one = constraint(form)
    said: list[int] = []
    for place, token in enumerate(wished):
        if place == cut:
            one = constraint(form)
            one.feed(said)
        may = allowed(one)
        assert len(may) in (1, VOCABULARY)
        if len(may) == 1:
            before = thought(said, form)
            assert before is not None and len(before) >= budget
        said.append(token if token in may else min(may))
        one.feed(said[-1:])
    spent = thought(said, form)
    if spent is None:
        return
    assert len(spent) <= budget + len(end)
    if len(spent) == budget + len(end):
        assert tuple(spent[-len(end) :]) == end
    at = len(said) - len(spent) if opened else said.index(START) + 1
    after = said[(0 if opened else at) + len(spent) :]
    if after:  # what follows the thinking is the model's own
        assert after == wished[len(wished) - len(after) :]


def test_without_a_budget_it_may_go_on() -> None:
    one = constraint(Thinking(opened=True, start=START, end=(33,)))
    one.feed([0] * 100)
    assert next_tokens([one]) is None and one.is_free


def test_one_row_is_bound_beside_others() -> None:
    form: Any = {"opened": True, "start": START, "end": (33,)}
    bound = constraint(Thinking(**form, budget=2))
    bound.feed([1, 1])
    masks = next_tokens([None, bound, constraint(Thinking(**form))])
    assert masks is not None
    assert masks[0].min() == masks[2].min() == 255
    assert allowed(bound) == {33}
    bound.feed([33])
    assert bound.is_free and allowed(bound) == set(range(VOCABULARY))
