"""What a process of its own costs: isolation="process" against "thread", in one run.

    python -m benchmarks.isolation [--model smollm2-135m-bf16 | --shape tiny] [--hosts local:2]

Two backends take turns for several rounds, each with the same model resident: tokens per
second of one stream and of 32 at once (the ratio counts), and the time to the first token
of a short prompt (the difference counts, of the middle of ten requests). What the parent
takes of memory is in `benchmarks.overhead`. With `--hosts` the sides are one process, and the
same model spread over those ranks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_guarded_llm import Backend, Catalog

from .pace import pace_arguments, stream_rows
from .shapes import chosen, device_name

FIRST_TOKENS = 10  # requests of which the middle counts


@dataclass(frozen=True)
class Way:
    """One of the two sides: a backend, and the model's name there."""

    backend: Backend
    model: str


Ways = Mapping[str, Way]  # by its name; the first is what the second is compared with


def first_token(way: Way) -> float:
    """Seconds until the first piece of an answer, the middle of several."""
    waited = []
    for n in range(FIRST_TOKENS):
        began = time.perf_counter()
        with way.backend.stream(way.model, f"Hello, number {n}?", max_tokens=4) as stream:
            next(stream)
            waited.append(time.perf_counter() - began)
            list(stream)
    return statistics.median(waited)


def pace(way: Way, tokens: int, rows: int) -> float:
    """Tokens per second of that many streams at once."""
    began = time.perf_counter()
    return stream_rows(way.backend, way.model, tokens, rows) / (time.perf_counter() - began)


def measure(ways: Ways, take: Callable[[Way], float], rounds: int) -> dict[str, list[float]]:
    """Both sides in turn, after one round that compiles kernels and does not count."""
    taken: dict[str, list[float]] = {side: [] for side in ways}
    for round_ in range(rounds + 1):
        for side in ways if round_ % 2 == 0 else reversed([*ways]):
            value = take(ways[side])
            if round_:
                taken[side].append(value)
    return taken


def paces(ways: Ways, args: argparse.Namespace) -> list[Any]:
    """A row for each number of streams, printed as it ends."""
    rows = []
    first, second = ways
    print(f"{'case':14} {first + ' tok/s':>13} {second + ' tok/s':>13} {'ratio':>7}  from to")
    for case, width in (("one stream", 1), (f"{args.rows} at once", args.rows)):
        taken = measure(ways, lambda way, n=width: pace(way, args.tokens, n), args.rounds)  # type: ignore[misc]
        ratios = [p / t for t, p in zip(taken[first], taken[second], strict=True)]
        row = {"case": case, **_middles(taken), "ratio": statistics.median(ratios)}
        print(
            f"{case:14} {row[first]:13.1f} {row[second]:13.1f} {row['ratio']:7.3f}  "
            f"{min(ratios):.3f} to {max(ratios):.3f}",
            flush=True,
        )
        rows.append(row | {"ratios": ratios})
    return rows


def first_tokens(ways: Ways, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds to the first token, and how much later it comes."""
    first, second = ways
    taken = measure(ways, lambda way: 1000 * first_token(way), args.rounds)
    later = [p - t for t, p in zip(taken[first], taken[second], strict=True)]
    row = {"case": "first token", **_middles(taken), "later": statistics.median(later)}
    print(
        f"first token: {row[first]:.1f} ms by {first}, {row[second]:.1f} ms by {second}, "
        f"{row['later']:+.1f} ms ({min(later):+.1f} to {max(later):+.1f})"
    )
    return row | {"laters": later}


def _middles(taken: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {side: statistics.median(values) for side, values in taken.items()}


def compare(catalog: Catalog, model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that takes both sides."""
    isolation: Any = "process" if args.hosts else "thread"
    with (
        Backend(isolation=isolation, prefix_cache=0, catalog=catalog) as one,
        Backend(isolation="process", prefix_cache=0, catalog=catalog) as process,
    ):
        if args.hosts:
            ways = {"one": Way(one, model), "spread": Way(process, f"{model}[hosts={args.hosts}]")}
        else:
            ways = {"thread": Way(one, model), "process": Way(process, model)}
        device = process.run(device_name)
        print(f"{args.shape or args.model} on {device}, {args.tokens} tokens each")
        rows = [*paces(ways, args), first_tokens(ways, args)]
    return {"device": device, "rows": rows}


def main() -> None:
    parser = pace_arguments(__doc__, rows=32)
    parser.add_argument("--hosts", help="compare one process with the model over these")
    args = parser.parse_args()
    with chosen(args.shape, args.model) as (model, _, catalog):
        out = compare(catalog, model, args)
    if args.json:
        args.json.write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
