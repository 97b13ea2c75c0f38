"""Requests for two models, and what is read off their answers. Not a case itself."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence

from ..harness import Figure, whole
from ..ours import Ours
from ..pace import Numbers, makespan, story
from ..side import Ask, Heard, Side

SEED = 7

# Sides with one model in memory, which answer in the order in which they swap.
ONE_AT_A_TIME = ("mlx_lm.server",)

Traffic = Callable[[Side], list[Ask]]


def alternating(tokens: int, count: int = 6) -> Traffic:
    """ABABAB, with prompts that are new in each round."""
    numbers = Numbers()

    def asks(side: Side) -> list[Ask]:
        models = itertools.islice(itertools.cycle(("large", "small")), count)
        return [story(numbers.take(side), tokens, model=model) for model in models]

    return asks


def mixed(tokens: int, count: int = 8, *, within: float = 0.0) -> Traffic:
    """A random mix, of answers half as long to one and a half times; each round the same.

    Args:
        within: seconds over which they arrive, in even steps.
    """
    numbers = Numbers()

    def asks(side: Side) -> list[Ask]:
        draw = random.Random(SEED)
        return [
            story(
                numbers.take(side),
                draw.randint(tokens // 2, tokens * 3 // 2),
                model=draw.choice(("large", "small")),
                after=within * i / count,
            )
            for i in range(count)
        ]

    return asks


def in_turn(side: Side, asks: Sequence[Ask]) -> list[Heard]:
    """Each is sent when the one before it is answered, as an agent does it."""
    return [side.ask(ask) for ask in asks]


def latencies(heard: Sequence[Heard]) -> dict[str, float]:
    """What single callers saw of it.

    Raises:
        Failed: an answer has an error.
    """
    whole(heard)
    return {
        "makespan, s": makespan(heard),
        "first piece, middle, s": statistics.median(one.first for one in heard),
        "first piece, worst, s": max(one.first for one in heard),
        "answer, middle, s": statistics.median(one.seconds for one in heard),
        "answer, worst, s": max(one.seconds for one in heard),
        "tokens": sum(one.tokens for one in heard),
    }


def solo(side: Side, asks: Sequence[Ask]) -> Figure:
    """The sum of the seconds of each request alone."""
    heard = in_turn(side, asks)
    return Figure(value=sum(one.seconds for one in heard), details=latencies(heard))


def swaps(
    side: Side, asks: Sequence[Ask], heard: Sequence[Heard], resident: str
) -> Mapping[str, float]:
    """How often a model was loaded meanwhile; {} where that cannot be known.

    Args:
        resident: the model that was in memory before.
    """
    if isinstance(side, Ours):
        began = min(one.began for one in heard)
        events = side.backend.events()
        return {"swaps": sum(e.kind == "load.started" and e.time >= began for e in events)}
    if side.name not in ONE_AT_A_TIME:
        return {}
    firsts = sorted(
        (one.began + one.first, ask.model) for ask, one in zip(asks, heard, strict=True)
    )
    order = [resident, *(model for _, model in firsts)]
    return {"swaps": sum(a != b for a, b in itertools.pairwise(order))}
