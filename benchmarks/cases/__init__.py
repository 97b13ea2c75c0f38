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


def all_cases(args: argparse.Namespace) -> dict[str, list[Case]]:
    """Every case, by module of this package."""
    made = {n: importlib.import_module(f".{n}", __package__).case(args) for n in NAMES}
    return {name: [one] if isinstance(one, Case) else one for name, one in made.items()}


def chosen_cases(args: argparse.Namespace) -> list[Case]:
    """Those that `args.names` names, by module or one by one; all where it is empty."""
    return [
        case
        for module, cases in all_cases(args).items()
        for case in cases
        if not args.names or {module, case.name} & set(args.names)
    ]
