"""A long prompt arrives while others are being answered: how long these stand still."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from mlx_guarded_llm.memory.budget import PREFILL_STEP

from ..harness import Case, Failed, Figure, whole
from ..pace import Numbers, makespan, story
from ..side import Ask, Heard, Setup, Side

STREAMS = 8
SENTENCE = "The sea was grey, and the wind came from the north all day long. "
ARRIVES = 0.25  # of the time that the streams decode without it


def case(args: argparse.Namespace) -> Case:
    device = "gpu" if args.gpu else "cpu"
    chunks = 3.3 if args.gpu else 4.2  # of ours, in the long prompt
    length = int(chunks * PREFILL_STEP[device])
    numbers = Numbers()
    text: list[str] = []
    arrives: dict[str, float] = {}  # by side: seconds after the streams began

    def setup(models: Mapping[str, Path]) -> Setup:
        text[:] = [long_text(models["large"], length)]
        return Setup(models=models)

    def streams(side: Side) -> list[Ask]:
        return [story(numbers.take(side), args.tokens) for _ in range(STREAMS)]

    def long(side: Side, after: float = 0.0) -> Ask:
        content = f"Log {numbers.take(side)}: {text[0]}"
        return Ask(messages=[{"role": "user", "content": content}], max_tokens=4, after=after)

    def warm_up(side: Side) -> None:
        whole(side.together([*streams(side), long(side)]))  # kernels are compiled here
        arrives[side.name] = min(arrival(whole(side.together(streams(side)))) for _ in range(2))
        measure(side)

    def measure(side: Side) -> Figure:
        (prefill,) = whole([side.ask(long(side))])
        asks = [*streams(side), long(side, after=arrives[side.name])]
        *others, newcomer = whole(side.together(asks))
        gap = worst_gap(others, newcomer)
        if not gap:
            raise Failed("the streams were over before the long prompt arrived")
        chunk = prefill.first / chunks
        return Figure(
            value=gap,
            details={
                "in chunks": gap / chunk,
                "chunk, ms": 1000 * chunk,
                "long prompt alone, s": prefill.first,
                "beside the streams, s": newcomer.first,
                "streams, s": makespan(others),
            },
        )

    return Case(
        name="long_prompt",
        what=f"A prompt of {length} tokens arrives while {STREAMS} streams of {args.tokens} tokens "
        "run: the longest time between two pieces of one of them until its first token. A chunk "
        f"is {PREFILL_STEP[device]} tokens of the long prompt alone. Raw is one BatchGenerator.",
        unit="s",
        better="lower",
        setup=setup,
        measure=measure,
        warm_up=warm_up,
        aim="under 2 prefill chunks; ahead of each peer",
    )


def arrival(streams: Sequence[Heard]) -> float:
    """When the long prompt is to come, in seconds after streams like these began."""
    decoding = max(stream.first for stream in streams)  # all of them, from then on
    return decoding + ARRIVES * (makespan(streams) - decoding)


def long_text(folder: Path, tokens: int) -> str:
    """Text of about that many tokens of a model."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    each = len(tokenizer.encode(SENTENCE * 8, add_special_tokens=False).ids) / 8
    return SENTENCE * math.ceil(tokens / each)


def worst_gap(streams: Sequence[Heard], newcomer: Heard) -> float:
    """The longest time between two pieces of a stream while the newcomer's prompt ran.

    What is not over when the newcomer's first token comes counts as a whole; 0 if none
    of them was still running.
    """
    began, first = newcomer.began, newcomer.began + newcomer.first
    gaps = [
        later - earlier
        for stream in streams
        for earlier, later in itertools.pairwise(stream.pieces)
        if later > began and earlier < first
    ]
    return max(gaps, default=0.0)
