"""What a process of its own costs: isolation="process" against "thread", in one run.

    python -m benchmarks.isolation [--model smollm2-135m-bf16 | --shape tiny]

Two backends take turns for several rounds, each with the same model resident: tokens per
second of one stream and of 32 at once (the ratio counts), and the time to the first token
of a short prompt (the difference counts, of the middle of ten requests). What the parent
takes of memory is in `benchmarks.overhead`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_guarded_llm import Backend, Catalog

from .pace import pace_arguments, stream_rows
from .shapes import chosen, device_name

FIRST_TOKENS = 10  # requests of which the middle counts
SIDES = ("thread", "process")


def first_token(backend: Backend, model: str) -> float:
    """Seconds until the first piece of an answer, the middle of several."""
    waited = []
    for n in range(FIRST_TOKENS):
        began = time.perf_counter()
        with backend.stream(model, f"Hello, number {n}?", max_tokens=4) as stream:
            next(stream)
            waited.append(time.perf_counter() - began)
            list(stream)
    return statistics.median(waited)


def pace(backend: Backend, model: str, tokens: int, rows: int) -> float:
    """Tokens per second of that many streams at once."""
    began = time.perf_counter()
    return stream_rows(backend, model, tokens, rows) / (time.perf_counter() - began)


def measure(
    backends: Mapping[str, Backend], take: Callable[[Backend], float], rounds: int
) -> dict[str, list[float]]:
    """Both sides in turn, after one round that compiles kernels and does not count."""
    taken: dict[str, list[float]] = {side: [] for side in SIDES}
    for round_ in range(rounds + 1):
        for side in SIDES if round_ % 2 == 0 else reversed(SIDES):
            value = take(backends[side])
            if round_:
                taken[side].append(value)
    return taken


def paces(backends: Mapping[str, Backend], model: str, args: argparse.Namespace) -> list[Any]:
    """A row for each number of streams, printed as it ends."""
    rows = []
    print(f"{'case':14} {'thread tok/s':>12} {'process tok/s':>13} {'ratio':>7}  spread")
    for case, width in (("one stream", 1), (f"{args.rows} at once", args.rows)):
        taken = measure(backends, lambda b, n=width: pace(b, model, args.tokens, n), args.rounds)  # type: ignore[misc]
        ratios = [p / t for t, p in zip(taken["thread"], taken["process"], strict=True)]
        row = {"case": case, **_middles(taken), "ratio": statistics.median(ratios)}
        print(
            f"{case:14} {row['thread']:12.1f} {row['process']:13.1f} {row['ratio']:7.3f}  "
            f"{min(ratios):.3f} to {max(ratios):.3f}",
            flush=True,
        )
        rows.append(row | {"ratios": ratios})
    return rows


def first_tokens(
    backends: Mapping[str, Backend], model: str, args: argparse.Namespace
) -> dict[str, Any]:
    """Milliseconds to the first token, and how much later it comes."""
    taken = measure(backends, lambda b: 1000 * first_token(b, model), args.rounds)
    later = [p - t for t, p in zip(taken["thread"], taken["process"], strict=True)]
    row = {"case": "first token", **_middles(taken), "later": statistics.median(later)}
    print(
        f"first token: {row['thread']:.1f} ms by thread, {row['process']:.1f} ms by process, "
        f"{row['later']:+.1f} ms ({min(later):+.1f} to {max(later):+.1f})"
    )
    return row | {"laters": later}


def _middles(taken: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {side: statistics.median(values) for side, values in taken.items()}


def compare(catalog: Catalog, model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that takes both sides."""
    with (
        Backend(isolation="thread", prefix_cache=0, catalog=catalog) as thread,
        Backend(isolation="process", prefix_cache=0, catalog=catalog) as process,
    ):
        backends = {"thread": thread, "process": process}
        device = process.run(device_name)
        print(f"{args.shape or args.model} on {device}, {args.tokens} tokens each")
        rows = [*paces(backends, model, args), first_tokens(backends, model, args)]
    return {"device": device, "rows": rows}


def main() -> None:
    args = pace_arguments(__doc__, rows=32)
    with chosen(args.shape, args.model) as (model, _, catalog):
        out = compare(catalog, model, args)
    if args.json:
        args.json.write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
