"""What is compared. Each module has `case(args)`, which makes a `Case` or several of them.

`args` is the command line of `python -m benchmarks`: `names`, `tokens` of an answer, and
`gpu` for whether MLX computes on one.
"""

from __future__ import annotations

import argparse
import importlib

from ..harness import Case

NAMES = (
    "single",
    "batch",
    "sampling",
    "turns",
    "long_prompt",
    "two_models",
    "one_fits",
    "newcomer",
    "deferred",
    "starvation",
    "crash",
    "rag",
)


def make_cases(args: argparse.Namespace, *, everything: bool = False) -> list[Case]:
    """The cases that `args.names` names, by module or one by one; all where it is empty."""
    made: list[Case] = []
    for name in NAMES:
        cases = importlib.import_module(f".{name}", __package__).case(args)
        cases = [cases] if isinstance(cases, Case) else cases
        wanted = everything or not args.names or name in args.names
        made += [case for case in cases if wanted or case.name in args.names]
    return made
