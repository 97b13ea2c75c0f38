"""Where the milliseconds go: the same tokens through each layer of the stack.

    python -m benchmarks.layers [--model smollm2-135m-bf16 | --shape llama-8b]

For one row and for many: raw mlx-lm, our batch alone, the backend answering whole
(`generate`) and the backend streaming. All on one thread of one process, in turn; so the
backend runs with isolation="thread".
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlx_guarded_llm import Backend

from .pace import PROMPT, stream_rows
from .shapes import SHAPES, chosen

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


def our_batch(folder: str, tokens: int, rows: int) -> Callable[[], int]:
    """Our `ContinuousBatch` with nothing around it, on the MLX thread."""

    def work() -> int:
        from mlx_guarded_llm.engine.decode.batch import ContinuousBatch
        from mlx_guarded_llm.engine.decode.decoder import Token, TokenSequence
        from mlx_guarded_llm.engine.residency.prefix import PrefixCaches
        from mlx_guarded_llm.params import SamplingParams

        model, tokenizer = _raw_model(folder)
        prefix = PrefixCaches(0).open("bench")
        batch = ContinuousBatch(model, tokenizer, prefix, max_active=rows, prefill_step_size=2048)
        params = SamplingParams(max_tokens=tokens)
        for i in range(rows):
            batch.insert(TokenSequence(str(i), _encode(tokenizer, i), params, 0, tokens))
        count = 0
        while len(batch):
            count += sum(1 for update in batch.step() if isinstance(update, Token))
        return count

    return work


def whole(backend: Backend, model: str, tokens: int, rows: int) -> int:
    """`rows` calls of `generate` at once."""

    def call(i: int) -> int:
        result = backend.generate(model, PROMPT.format(i), max_tokens=tokens)
        return result.usage.completion_tokens

    with ThreadPoolExecutor(rows) as pool:
        return sum(pool.map(call, range(rows)))


def _raw_model(folder: str) -> Any:
    if "model" not in _raw:
        from mlx_lm import load

        _raw["model"] = load(folder)
    return _raw["model"]


def _encode(tokenizer: Any, number: int) -> list[int]:
    messages = [{"role": "user", "content": PROMPT.format(number)}]
    encoded: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return encoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-bf16")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with (
        chosen(args.shape, args.model) as (model, folder, catalog),
        Backend(isolation="thread", prefix_cache=0, catalog=catalog) as backend,
    ):
        for rows in args.rows:
            table(backend, model, folder, rows, args)
        backend.run(_raw.clear)


def table(backend: Backend, model: str, folder: str, rows: int, args: argparse.Namespace) -> None:
    """Print tokens per second of each layer, and each as a share of raw mlx-lm."""
    n = args.tokens
    layers: dict[str, Callable[[], int]] = {}
    if rows == 1:
        layers["stream_generate"] = lambda: backend.run(raw_single(folder, n))
    layers["BatchGenerator"] = lambda: backend.run(raw_batch(folder, n, rows))
    layers["ContinuousBatch"] = lambda: backend.run(our_batch(folder, n, rows))
    layers["generate"] = lambda: whole(backend, model, n, rows)
    layers["stream"] = lambda: stream_rows(backend, model, n, rows)
    rates: dict[str, list[float]] = {name: [] for name in layers}
    for round_ in range(args.rounds + 1):
        for name, layer in layers.items():
            began = time.perf_counter()
            rate = layer() / (time.perf_counter() - began)
            if round_:  # the first round compiles kernels
                rates[name].append(rate)
    first = statistics.median(next(iter(rates.values())))
    print(f"{rows} at once, {n} tokens each", flush=True)
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"  {name:16} {middle:8.1f} tok/s  {middle / first:6.3f}", flush=True)


if __name__ == "__main__":
    main()
