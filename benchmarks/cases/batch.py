"""Several streams at once."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from ..harness import Case, Figure, whole
from ..pace import Numbers, story, tokens_per_second
from ..raw import Raw
from ..side import Ask, Heard, Setup, Side

ROWS = (1, 8, 32)


def case(args: argparse.Namespace) -> list[Case]:
    return [_case(rows, args.tokens) for rows in ROWS]


def _case(rows: int, tokens: int) -> Case:
    numbers = Numbers()

    def asks(side: Side) -> list[Ask]:
        return [story(numbers.take(side), tokens) for _ in range(rows)]

    def measure(side: Side) -> Figure:
        return _figure(side.together(asks(side)))

    def reference(side: Side) -> Figure:
        assert isinstance(side, Raw)
        return _figure(side.batched(asks(side)))

    return Case(
        name=f"batch-{rows}",
        what=f"{rows} at once, {tokens} tokens each: all tokens by the seconds from the first "
        "request to the last end. Raw is one BatchGenerator that gets all rows at once.",
        unit="tokens/s",
        better="higher",
        setup=lambda models: Setup(models=models),
        measure=measure,
        reference=reference,
        aim="at least 0.97 of raw; ahead of each peer",
        aim_ratio=0.97,
    )


def _figure(heard: Sequence[Heard]) -> Figure:
    whole(heard)
    firsts = sorted(1000 * one.first for one in heard)
    return Figure(
        value=tokens_per_second(heard),
        details={
            "first token, ms": statistics.median(firsts),
            "latest first token, ms": firsts[-1],
        },
    )
