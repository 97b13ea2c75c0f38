"""Requests that differ in nothing but their number, and what their answers amount to."""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlx_guarded_llm import Backend

from .harness import whole
from .shapes import SHAPES
from .side import Ask, Heard, Side, run_all

# The number comes first: with it the part begins that no prefix cache has seen.
PROMPT = "Story {}: write a long story about a lighthouse keeper, as long as you can."
PROBE = 24  # tokens from which a pace is told
MOST = 6000  # tokens of an answer, for the context window


class Numbers:
    """Counts up on each side by itself: in one round all sides get the same prompts."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)

    def take(self, side: Side) -> int:
        """The next number of a side, from 0."""
        return next(self._counts[side.name])


def story(
    number: int,
    tokens: int,
    *,
    model: str = "large",
    options: Mapping[str, Any] | None = None,
    after: float = 0.0,
) -> Ask:
    """A request with a short prompt and an answer of that many tokens."""
    return Ask(
        messages=[{"role": "user", "content": PROMPT.format(number)}],
        max_tokens=tokens,
        model=model,
        options=options or {},
        after=after,
    )


def makespan(heard: Sequence[Heard]) -> float:
    """Seconds from the first request to the end of the last answer."""
    return max(one.ended for one in heard) - min(one.began for one in heard)


def tokens_per_second(heard: Sequence[Heard]) -> float:
    """Of all answers together, prefill included."""
    return sum(one.tokens for one in heard) / makespan(heard)


def tokens_lasting(side: Side, numbers: Numbers, seconds: float, *, model: str = "large") -> int:
    """How many tokens a side takes so long for, by the pace of a short answer.

    Raises:
        Failed: that answer has an error.
    """
    (heard,) = whole([side.ask(story(numbers.take(side), PROBE, model=model))])
    pace = (heard.tokens - 1) / (heard.pieces[-1] - heard.pieces[0])
    return min(MOST, max(PROBE, round(pace * seconds)))


def stream_rows(backend: Backend, model: str, tokens: int, rows: int) -> int:
    """So many streams at once through a backend. Returns how many tokens came."""
    counts = [0] * rows

    def consume(i: int) -> None:
        for chunk in backend.stream(model, PROMPT.format(i), max_tokens=tokens):
            if chunk.usage is not None:
                counts[i] = chunk.usage.completion_tokens

    run_all([partial(consume, i) for i in range(rows)])
    return sum(counts)


def pace_arguments(description: str, *, rows: int = 16) -> argparse.ArgumentParser:
    """The command line of a script that compares the pace of two ways in turn."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-bf16")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser
