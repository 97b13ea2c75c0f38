"""Tokens per second through the backend against raw mlx-lm, in one run.

    python -m benchmarks.throughput [--model smollm2-135m-bf16 | --shape llama-8b]

Two cases: one stream against `mlx_lm.stream_generate`, and 16 at once against
`BatchGenerator`. Both sides run on the same thread of the same process, on weights of
the same files, and take turns for several rounds. What is reported is the ratio. The
backend runs with isolation="thread"; `benchmarks.isolation` tells what a process costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from mlx_guarded_llm import Backend

from .shapes import chosen, device_name, pace_arguments

PROMPT = "Write a long story about a lighthouse keeper, number {}."
_raw: dict[str, Any] = {}  # the raw side's own model; lives on the MLX thread


def raw_single(folder: str, tokens: int) -> Callable[[], int]:
    """One `stream_generate`, on the MLX thread. Returns how many tokens came."""

    def work() -> int:
        from mlx_lm import stream_generate

        model, tokenizer = _raw_model(folder)
        prompt = _encode(tokenizer, 0)
        return sum(1 for _ in stream_generate(model, tokenizer, prompt, max_tokens=tokens))

    return work


def raw_batch(folder: str, tokens: int, rows: int) -> Callable[[], int]:
    """One `BatchGenerator` with `rows` prompts, on the MLX thread."""

    def work() -> int:
        from mlx_lm.generate import BatchGenerator

        model, tokenizer = _raw_model(folder)
        ends = [[token] for token in tokenizer.eos_token_ids]
        batch = BatchGenerator(model, stop_tokens=ends, completion_batch_size=rows)
        batch.insert([_encode(tokenizer, i) for i in range(rows)], max_tokens=[tokens] * rows)
        count = 0
        while responses := batch.next_generated():
            count += len(responses)
        batch.close()
        return count

    return work


def ours(backend: Backend, model: str, tokens: int, rows: int) -> int:
    """`rows` streams at once through the backend. Returns how many tokens came."""
    counts = [0] * rows

    def consume(i: int) -> None:
        for chunk in backend.stream(model, PROMPT.format(i), max_tokens=tokens):
            if chunk.usage is not None:
                counts[i] = chunk.usage.completion_tokens

    threads = [threading.Thread(target=consume, args=(i,)) for i in range(rows)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def _raw_model(folder: str) -> Any:
    if "model" not in _raw:
        from mlx_lm import load

        _raw["model"] = load(folder)
    return _raw["model"]


def _encode(tokenizer: Any, number: int) -> list[int]:
    messages = [{"role": "user", "content": PROMPT.format(number)}]
    encoded: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return encoded


def measure(backend: Backend, model: str, folder: str, args: argparse.Namespace) -> list[Any]:
    """Alternate both sides and return one row for each case."""
    rows = []
    for case, width in (("single", 1), (f"batch of {args.rows}", args.rows)):
        raw = raw_single(folder, args.tokens)
        if width > 1:
            raw = raw_batch(folder, args.tokens, width)
        backend.run(raw)  # warm up: kernels are compiled, files are read
        ours(backend, model, args.tokens, width)
        rates: dict[str, list[float]] = {"raw": [], "ours": []}
        sides: dict[str, Callable[[], int]] = {
            "raw": lambda raw=raw: backend.run(raw),  # type: ignore[misc]
            "ours": lambda width=width: ours(backend, model, args.tokens, width),  # type: ignore[misc]
        }
        for round_ in range(args.rounds):
            for side in ("raw", "ours") if round_ % 2 == 0 else ("ours", "raw"):
                began = time.perf_counter()
                count = sides[side]()
                rates[side].append(count / (time.perf_counter() - began))
        ratios = [o / r for o, r in zip(rates["ours"], rates["raw"], strict=True)]
        rows.append(
            {
                "case": case,
                "raw": statistics.median(rates["raw"]),
                "ours": statistics.median(rates["ours"]),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
            }
        )
    return rows


def main() -> None:
    args = pace_arguments(__doc__)
    with (
        chosen(args.shape, args.model) as (model, folder, catalog),
        Backend(isolation="thread", prefix_cache=0, catalog=catalog) as backend,
    ):
        device = backend.run(device_name)
        print(f"{args.shape or args.model} on {device}, {args.tokens} tokens each")
        rows = measure(backend, model, folder, args)
        backend.run(_raw.clear)
    print(f"{'case':14} {'raw tok/s':>10} {'ours tok/s':>10} {'ratio':>7}  spread")
    for row in rows:
        spread = f"{min(row['ratios']):.3f} to {max(row['ratios']):.3f}"
        print(
            f"{row['case']:14} {row['raw']:10.1f} {row['ours']:10.1f} {row['ratio']:7.3f}  {spread}"
        )
    if args.json:
        args.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
