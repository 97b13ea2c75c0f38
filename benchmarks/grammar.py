"""Tokens per second with a grammar against without, in one run.

    python -m benchmarks.grammar [--model smollm2-135m-bf16 | --shape llama-8b]

Four cases: one stream held to a JSON Schema; one stream free to call tools; several
streams of which all, and of which every other one, are held to the schema. The other side
of each is the same number of free streams. Sides take turns for several rounds. What is
reported is the ratio of their paces: tokens after the first, by the seconds they took; in
the last case that of the free streams, which the held ones must not slow, as well.

The schema has no end, so every stream runs to its last allowed token.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlx_guarded_llm import Backend

from .pace import PROMPT, pace_arguments
from .shapes import chosen, device_name
from .side import run_all

SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "kind": {"enum": ["lighthouse", "ship", "person"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 300},
            "seen": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
        },
        "required": ["name", "kind", "age", "seen"],
    },
    "minItems": 10_000,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": SCHEMA["items"]},
    }
    for name in ("look_up", "write_down")
]
FREE: Mapping[str, Any] = {}
HELD: Mapping[str, Any] = {"schema": SCHEMA}
CALLS: Mapping[str, Any] = {"tools": TOOLS}


@dataclass(frozen=True)
class Case:
    """Streams that run at once: `options` of each, against free ones."""

    name: str
    options: Sequence[Mapping[str, Any]]

    @property
    def is_mixed(self) -> bool:
        return 0 < sum(o is FREE for o in self.options) < len(self.options)


@dataclass(frozen=True)
class Pace:
    """Tokens per second after the first: of all streams together, and of each place."""

    total: float
    places: Sequence[float]

    def of(self, chosen: Sequence[bool]) -> float:
        """Of some of the places."""
        return sum(pace for pace, take in zip(self.places, chosen, strict=True) if take)


def cases(rows: int) -> list[Case]:
    return [
        Case("1, schema", [HELD]),
        Case("1, tools", [CALLS]),
        Case(f"{rows}, all schema", [HELD] * rows),
        Case(f"{rows}, every other", [HELD, FREE] * (rows // 2)),
    ]


def run(backend: Backend, model: str, tokens: int, streams: Sequence[Mapping[str, Any]]) -> Pace:
    """All these streams at once."""
    paces = [0.0] * len(streams)

    def consume(i: int) -> None:
        result = backend.generate(
            model, PROMPT.format(i), max_tokens=tokens, timeout=600, **streams[i]
        )
        paces[i] = (result.usage.completion_tokens - 1) / result.guard.decode

    run_all([partial(consume, i) for i in range(len(streams))])
    return Pace(sum(paces), paces)


def measure(backend: Backend, model: str, case: Case, tokens: int, rounds: int) -> dict[str, Any]:
    """Both sides in turn. The ratios of each round, and the middle of the paces."""
    sides = {"free": [FREE] * len(case.options), "held": case.options}
    for streams in sides.values():
        run(backend, model, tokens, streams)  # warm up: kernels, files, the grammar
    paces: dict[str, list[Pace]] = {"free": [], "held": []}
    for round_ in range(rounds):
        for side in ("free", "held") if round_ % 2 == 0 else ("held", "free"):
            paces[side].append(run(backend, model, tokens, sides[side]))
    chosen = [options is FREE for options in case.options]
    both = list(zip(paces["free"], paces["held"], strict=True))
    return {
        "case": case.name,
        "free": statistics.median(pace.total for pace in paces["free"]),
        "held": statistics.median(pace.total for pace in paces["held"]),
        "ratios": [held.total / free.total for free, held in both],
        "neighbours": [held.of(chosen) / free.of(chosen) for free, held in both]
        if case.is_mixed
        else [],
    }


def main() -> None:
    args = pace_arguments(__doc__).parse_args()
    with (
        chosen(args.shape, args.model) as (model, _folder, catalog),
        Backend(prefix_cache=0, catalog=catalog) as backend,
    ):
        device = backend.run(device_name)
        print(f"{args.shape or args.model} on {device}, {args.tokens} tokens each")
        print(f"{'streams':18} {'free tok/s':>10} {'held tok/s':>10} {'ratio':>7}  spread")
        rows = []
        for case in cases(args.rows):
            row = measure(backend, model, case, args.tokens, args.rounds)
            rows.append(row)
            print(
                f"{row['case']:18} {row['free']:10.1f} {row['held']:10.1f} {_spread(row['ratios'])}"
            )
            if row["neighbours"]:
                print(f"{'  the free ones':18} {'':21} {_spread(row['neighbours'])}")
    if args.json:
        args.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1))


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):7.3f}  {min(ratios):.3f} to {max(ratios):.3f}"


if __name__ == "__main__":
    main()
