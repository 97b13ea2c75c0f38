"""What a decode step costs by its number of rows, and which part of it.

    python -m benchmarks.steps [--shape llama-8b] [--rows 1 8 32 64] [--tokens 64]

Milliseconds of one step, the median, with the rows of the model's products apart, as mlx-lm
has them, and folded, as we load a model on CUDA:

    raw         `BatchGenerator`, greedy
    ours        our batch, greedy
    sampled     our batch, each row with temperature, top_p and a seed
    forward     the forward pass alone, waited for
    attention   what of it is attention: the difference to a pass without
    build       Python that builds the graph of a pass; the device waits for nothing of it
                unless it is faster
    issue       of "ours", handing work to MLX
    wait        of "ours", waiting for MLX
    read        of "ours", reading tokens and log probabilities

All in one process, in turn. Below stands whether both ways give the same logits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import load_model

from mlx_guarded_llm.engine.decode import batch as batching
from mlx_guarded_llm.engine.decode import sampling
from mlx_guarded_llm.engine.decode.batch import ContinuousBatch
from mlx_guarded_llm.engine.decode.conversion import lists
from mlx_guarded_llm.engine.decode.decoder import Token, TokenSequence
from mlx_guarded_llm.engine.residency.folding import fold_rows
from mlx_guarded_llm.engine.residency.prefix import PrefixCaches
from mlx_guarded_llm.params import SamplingParams

from .shapes import SHAPES, chosen

PROMPT = 32  # tokens of each row, none of them shared
SAMPLED = {"temperature": 0.8, "top_p": 0.9}
UNENDING = 10**6  # tokens
TURN = 4  # steps


class NoEnd:
    """A tokenizer without a token that ends an answer."""

    eos_token_ids: tuple[int, ...] = ()


def prompts(rows: int) -> list[list[int]]:
    """Of unequal lengths, as they come."""
    return [[5 + (7 * i + 3 * row) % 250 for i in range(PROMPT - row % 4)] for row in range(rows)]


def paces(steps: Mapping[str, Callable[[], Any]], tokens: int) -> dict[str, float]:
    """Milliseconds from step to step, the median. They take turns, a few steps at a time."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(-(-tokens // TURN)):
        for name, step in steps.items():
            step()  # it may wait for another one's
            for _ in range(TURN):
                began = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - began)
    return {name: 1000 * statistics.median(found) for name, found in times.items()}


def raw_batch(model: Any, rows: int) -> Callable[[], Any]:
    """The step of a batch that has its prompts."""
    batch = BatchGenerator(model, completion_batch_size=rows, prefill_batch_size=rows)
    batch.insert(prompts(rows), max_tokens=[UNENDING] * rows)
    while len(batch.next()[1]) < rows:
        pass
    return batch.next


def our_batch(model: Any, rows: int, **sampling: Any) -> tuple[ContinuousBatch, Callable[[], Any]]:
    prefix = PrefixCaches(0).open("bench")
    batch = ContinuousBatch(model, NoEnd(), prefix, max_active=rows, prefill_step_size=2048)
    for i, prompt in enumerate(prompts(rows)):
        params = SamplingParams(max_tokens=UNENDING, **sampling)
        batch.insert(TokenSequence(str(i), prompt, params, i, UNENDING))
    while sum(isinstance(update, Token) for update in batch.step()) < rows:
        pass
    return batch, batch.step


@contextmanager
def without_attention() -> Iterator[None]:
    with mock.patch.object(
        mx.fast, "scaled_dot_product_attention", lambda queries, *_args, **_kwargs: queries
    ):
        yield


def parts(step: Callable[[], Any], tokens: int) -> dict[str, float]:
    """Milliseconds of each step in which MLX has work handed to it, is waited for, and is read."""
    spent = dict.fromkeys(("issue", "wait", "read"), 0.0)

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            began = time.perf_counter()
            result = call(*args)
            spent[part] += time.perf_counter() - began
            return result

        return run

    with (
        mock.patch.object(mx, "async_eval", timed("issue", mx.async_eval)),
        mock.patch.object(mx, "eval", timed("wait", mx.eval)),
        mock.patch.object(batching, "lists", timed("read", lists)),
        mock.patch.object(sampling, "lists", timed("read", lists)),
    ):
        for _ in range(tokens):
            step()
    return {part: 1000 * seconds / tokens for part, seconds in spent.items()}


def measure(model: Any, rows: int, tokens: int) -> dict[str, float]:
    batch, step = our_batch(model, rows)
    caches = batch._batch._generation_batch.prompt_cache
    inputs = mx.full((rows, 1), 7)
    built: list[float] = []

    def forward() -> None:
        began = time.perf_counter()
        logits = model(inputs, cache=caches)
        built.append(time.perf_counter() - began)
        mx.eval(logits)

    def lean() -> None:
        with without_attention():
            forward()

    ours, sampled = our_batch(model, rows)[1], our_batch(model, rows, **SAMPLED)[1]
    found = paces({"raw": raw_batch(model, rows), "ours": ours, "sampled": sampled}, tokens)
    step()
    found |= parts(step, tokens)
    found |= paces({"forward": forward, "attention": lean}, tokens)
    found["attention"] = found["forward"] - found["attention"]
    found["build"] = 1000 * statistics.median(built)
    return found


COLUMNS = ("raw", "ours", "sampled", "forward", "attention", "build", "issue", "wait", "read")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-bf16")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures: list[dict[str, Any]] = []
    with chosen(args.shape, args.model) as (_, folder, _catalog):
        apart, _ = load_model(Path(folder))
        folded, _ = load_model(Path(folder))
        fold_rows(folded)
        print(f"{args.shape or args.model} on {mx.device_info().get('device_name')}")
        print("rows  products" + "".join(f"{name:>10}" for name in COLUMNS) + "    ms a step")
        for rows in args.rows:
            for products, model in (("apart", apart), ("folded", folded)):
                measure(model, rows, 1)  # kernels are compiled here
                found = measure(model, rows, args.tokens)
                figures.append({"rows": rows, "products": products, **found})
                columns = "".join(f"{found[name]:10.3f}" for name in COLUMNS)
                print(f"{rows:4}  {products:8}{columns}", flush=True)
            logits = first_logits(apart, rows), first_logits(folded, rows)
            same, far = bool(mx.array_equal(*logits)), difference(*logits)
            print(f"      logits: the same bits {same}, largest difference {far:.3g}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


def first_logits(model: Any, rows: int) -> mx.array:
    """Of a step of that many rows behind their prompts, of shape (rows, vocabulary)."""
    batch, _ = our_batch(model, rows)
    caches = batch._batch._generation_batch.prompt_cache
    logits: mx.array = model(mx.full((rows, 1), 7), cache=caches)[:, -1].astype(mx.float32)
    mx.eval(logits)
    return logits


def difference(some: mx.array, others: mx.array) -> float:
    """The largest, as a fraction of the standard deviation of the logits."""
    return float(mx.max(mx.abs(some - others)) / mx.std(others))


if __name__ == "__main__":
    main()
