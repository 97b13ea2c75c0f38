"""A batch in which every row samples in its own way."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..harness import Case, Figure, whole
from ..pace import Numbers, story, tokens_per_second
from ..side import Setup, Side

ROWS = 16


def case(args: argparse.Namespace) -> Case:
    numbers = Numbers()

    def pace(side: Side, *, mixed: bool) -> float:
        asks = [
            story(numbers.take(side), args.tokens, options=options(row) if mixed else None)
            for row in range(ROWS)
        ]
        return tokens_per_second(whole(side.together(asks)))

    def measure(side: Side) -> Figure:
        greedy = pace(side, mixed=False)
        mixed = pace(side, mixed=True)
        return Figure(
            value=mixed, details={"greedy, tokens/s": greedy, "of its own greedy": mixed / greedy}
        )

    return Case(
        name="sampling",
        what=f"{ROWS} at once, {args.tokens} tokens each, with different temperature, top_p, "
        "top_k, seed and penalties: tokens/s, and beside it the same batch greedy on the same "
        "side. Raw is one BatchGenerator with a sampler and processors for each row.",
        unit="tokens/s",
        better="higher",
        setup=lambda models: Setup(models=models),
        measure=measure,
        aim="at least 0.95 of its own greedy; ahead of raw and of each peer",
        aim_ratio=1.0,
    )


def options(row: int) -> Mapping[str, Any]:
    """Sampling options of a row; no two are alike."""
    mixed: dict[str, Any] = {
        "temperature": 0.5 + 0.05 * row,
        "top_p": 0.99 - 0.02 * (row % 8),
        "top_k": 20 + 5 * row,
        "seed": 1000 + row,
    }
    penalty = (
        {},
        {"repetition_penalty": 1.05 + 0.01 * row},
        {"presence_penalty": 0.1 + 0.02 * row},
        {"frequency_penalty": 0.1 + 0.02 * row},
    )[row % 4]
    return mixed | penalty
