"""One stream."""

from __future__ import annotations

import argparse

from ..harness import Case, Figure, whole
from ..pace import Numbers, story, tokens_per_second
from ..side import Setup, Side


def case(args: argparse.Namespace) -> Case:
    numbers = Numbers()

    def measure(side: Side) -> Figure:
        (heard,) = whole([side.ask(story(numbers.take(side), args.tokens))])
        details = {"first token, ms": 1000 * heard.first}
        if len(heard.pieces) > 1:  # not all stream
            pace = (heard.tokens - 1) / (heard.seconds - heard.first)
            details["decode, tokens/s"] = pace
        return Figure(value=tokens_per_second([heard]), details=details)

    return Case(
        name="single",
        what=f"One stream of {args.tokens} tokens: tokens by the seconds of the whole request. "
        "Raw is stream_generate.",
        unit="tokens/s",
        better="higher",
        setup=lambda models: Setup(models=models),
        measure=measure,
        aim="at least 0.98 of raw",
        aim_ratio=0.98,
        python_apis=True,
    )
