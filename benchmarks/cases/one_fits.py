"""A large and a small model with memory for one of them: who waits, and for how many swaps."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..harness import Case, Figure, whole
from ..side import Ask, Heard, Setup, Side
from .traffic import Traffic, alternating, in_turn, latencies, mixed, solo, swaps

ARRIVALS = 16
WITHIN = 10.0  # seconds; two fairness windows of ours
AIM = "fewer swaps and a lower worst wait than each peer"

# Asked before each round: so that the same model is in memory then.
FIRST = Ask(model="large", messages=({"role": "user", "content": "Hello"},), max_tokens=2)


def case(args: argparse.Namespace) -> list[Case]:
    return [
        _worst_wait("one-fits", "ABABAB at once", alternating(args.tokens)),
        _worst_wait(
            "one-fits-mix",
            f"{ARRIVALS} requests at random that come within {WITHIN:.0f} s",
            mixed(args.tokens, ARRIVALS, within=WITHIN),
        ),
        _chain(alternating(args.tokens)),
    ]


def _worst_wait(name: str, what: str, traffic: Traffic) -> Case:
    def measure(side: Side) -> Figure:
        whole([side.ask(FIRST)])
        asks = traffic(side)
        seen = _seen(side, asks, side.together(asks))
        return Figure(value=seen["first piece, worst, s"], details=seen)

    return Case(
        name=name,
        what=f"{what}, memory for one of the two models: the worst wait for a first piece.",
        unit="s",
        better="lower",
        setup=_setup,
        measure=measure,
        needs_raw=False,
        aim=AIM,
    )


def _chain(traffic: Traffic) -> Case:
    """Nobody can swap less than once for each request here; what counts is what it costs."""

    def measure(side: Side) -> Figure:
        whole([side.ask(FIRST)])
        asks = traffic(side)
        seen = _seen(side, asks, in_turn(side, asks))
        return Figure(value=seen["makespan, s"], details=seen)

    def reference(raw: Side) -> Figure:
        whole([raw.ask(FIRST)])
        return solo(raw, traffic(raw))

    return Case(
        name="one-fits-chain",
        what="ABABAB in turn, memory for one of the two models: the makespan. Raw drops one "
        "model and loads the other each time.",
        unit="s",
        better="lower",
        setup=_setup,
        measure=measure,
        reference=reference,
        aim=AIM,
    )


def _seen(side: Side, asks: Sequence[Ask], heard: Sequence[Heard]) -> dict[str, float]:
    return {**latencies(heard), **swaps(side, asks, heard, FIRST.model)}


def _setup(models: Mapping[str, Path]) -> Setup:
    return Setup(models=models, fits_one=True)
