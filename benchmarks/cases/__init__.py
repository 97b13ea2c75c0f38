"""What is compared. Each module has `case(args)`, which makes a `Case` or several of them.

`args` is the command line of `python -m benchmarks`: `tokens` an answer, and `gpu` for
whether MLX computes on one.
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


def make_cases(name: str, args: argparse.Namespace) -> list[Case]:
    """The cases of one module of this package."""
    module = importlib.import_module(f".{name}", __package__)
    made = module.case(args)
    return [made] if isinstance(made, Case) else list(made)
