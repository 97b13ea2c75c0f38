"""A large and a small model, both in memory, asked in any order."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from ..harness import Case, Figure
from ..side import Setup, Side
from .traffic import Traffic, alternating, in_turn, latencies, mixed, solo


def case(args: argparse.Namespace) -> list[Case]:
    return [
        _case("two-models", "ABABAB at once", alternating(args.tokens)),
        _case("two-models-mix", "A random mix at once", mixed(args.tokens)),
        _case("two-models-chain", "ABABAB in turn", alternating(args.tokens), chain=True),
    ]


def _case(name: str, what: str, traffic: Traffic, *, chain: bool = False) -> Case:
    def measure(side: Side) -> Figure:
        asks = traffic(side)
        heard = in_turn(side, asks) if chain else side.together(asks)
        seen = latencies(heard)
        return Figure(value=seen["makespan, s"], details=seen)

    return Case(
        name=name,
        what=f"{what}, of a large and a small model that both fit: the makespan. "
        "Raw is the sum of the solo times.",
        unit="s",
        better="lower",
        setup=_setup,
        measure=measure,
        reference=lambda raw: solo(raw, traffic(raw)),
        aim="at most 1.05 of raw; ahead of each peer",
        aim_ratio=1.05,
    )


def _setup(models: Mapping[str, Path]) -> Setup:
    return Setup(models=models, loaded=("large", "small"))
