"""Whether mlx-lm and this library, greedy and alone, give the same tokens from run to run.

    python -m benchmarks.repeat [--shape llama-8b] [--tokens 320] [--runs 4] [--settings ...]
    python -m benchmarks.repeat --attention 2000

The control for every claim that a text is the same: what differs here is not ours to promise.
Each setting is a process of its own, in which `mlx_lm.generate.generate_step` answers the same
prompt several times. Printed: where a run first has another token than the first run, where
its log probabilities first have other bits, and how many answers there were; then from which
position on the bits are those of "vector", in which attention never changes its kernel.

    as it is     nothing is set
    prealloc     the KV cache has its full size from the start
    vector       the KV cache grows in steps of 255 instead of 256: on CUDA the attention of a
                 single query is then never cuDNN's, which takes caches of steps of 256 only
    no cudnn     MLX_CUDA_USE_CUDNN_SDPA=0: nor is that of prompts; so do we
    padding      what the KV cache does not hold yet is NaN instead of 0
    no cache     MLX keeps no free buffers, so that each has the size that was asked for
    no graphs    MLX_USE_CUDA_GRAPHS=0
    ours         this library instead of raw mlx-lm; its bits are those of the tokens' own log
                 probabilities

With --attention the attention of a single query is called that often with the same arrays, from
a cache of steps of 256 and of 255. Printed: how many calls gave other bits than the first, and
microseconds of a call.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlx_guarded_llm import Backend

from .shapes import SHAPES, chosen

SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "prealloc": {},
    "vector": {},
    "no cudnn": {"MLX_CUDA_USE_CUDNN_SDPA": "0"},
    "padding": {},
    "no cache": {},
    "no graphs": {"MLX_USE_CUDA_GRAPHS": "0"},
    "ours": {},
}
PROMPT = 24  # tokens
PROMPT_IDS = [5 + 11 * i % 200 for i in range(PROMPT)]


def answers(setting: str, folder: Path, tokens: int, runs: int) -> list[dict[str, Any]]:
    """The tokens of each run, and a digest of the log probabilities behind each."""
    if setting == "ours":
        return our_answers(folder, tokens, runs)
    import mlx.core as mx
    import numpy as np
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import KVCache
    from mlx_lm.utils import load_model

    if setting == "prealloc":
        KVCache.step = 256 * -(-(PROMPT + tokens) // 256)
    elif setting == "vector":
        KVCache.step = 255
    elif setting == "padding":
        _pad_with_nan(KVCache)
    elif setting == "no cache":
        mx.set_cache_limit(0)
    model, _ = load_model(folder)
    # Not the default stream: mlx-lm has one of its own as well.
    stream = mx.new_stream(mx.default_device())
    prompt = mx.array(PROMPT_IDS)
    found = []
    for _ in range(runs):
        run: dict[str, Any] = {"tokens": [], "bits": []}
        for token, logprobs in generate_step(prompt, model, stream, max_tokens=tokens):
            raw = np.array(logprobs.view(mx.uint8)).tobytes()
            run["tokens"].append(int(token))
            run["bits"].append(hashlib.sha1(raw, usedforsecurity=False).hexdigest()[:12])
        found.append(run)
    return found


def our_answers(folder: Path, tokens: int, runs: int) -> list[dict[str, Any]]:
    """As `answers`, by this library."""
    with Backend(offline=True, prefix_cache=0) as backend:
        results = [
            backend.generate(
                folder, PROMPT_IDS, raw=True, max_tokens=tokens, temperature=0, logprobs=True
            )
            for _ in range(runs)
        ]
    return [
        {
            "tokens": [each.token for each in result.logprobs],
            "bits": [each.logprob.hex() for each in result.logprobs],
        }
        for result in results
    ]


def _pad_with_nan(cache: Any) -> None:
    """Whatever the cache holds beyond its offset is NaN."""
    import mlx.core as mx

    real = cache.update_and_fetch

    def update_and_fetch(self: Any, keys: Any, values: Any) -> Any:
        size = 0 if self.keys is None else self.keys.shape[2]
        result = real(self, keys, values)
        if self.keys.shape[2] != size:
            self.keys[..., self.offset :, :] = mx.nan
            self.values[..., self.offset :, :] = mx.nan
            result = self.keys_and_values()
        return result

    cache.update_and_fetch = update_and_fetch


def attention(calls: int) -> None:
    """Repeat the attention of one query of Llama-8B's heads in bfloat16."""
    import mlx.core as mx

    heads, kv_heads, size, together = 32, 8, 128, 50
    print("held  step  other bits  us/call")
    for held in (300, 1000, 4000, 8000):
        for step in (256, 255):
            mx.random.seed(held)
            shape = (1, kv_heads, step * -(-held // step), size)
            query = mx.random.normal((1, heads, 1, size)).astype(mx.bfloat16)
            cache = [mx.random.normal(shape).astype(mx.bfloat16) for _ in "kv"]
            mx.eval(query, cache)

            def call(query: Any = query, cache: Any = cache, held: int = held) -> Any:
                keys, values = (kept[..., :held, :] for kept in cache)
                return mx.fast.scaled_dot_product_attention(query, keys, values, scale=size**-0.5)

            first = call().view(mx.uint16)
            mx.eval(first)
            others, began = 0, time.perf_counter()
            for _ in range(calls // together):
                found = [mx.any(call().view(mx.uint16) != first) for _ in range(together)]
                others += int(mx.sum(mx.stack(found)))
            seconds = time.perf_counter() - began
            print(f"{held:4} {step:5} {others:11} {1e6 * seconds / calls:8.1f}", flush=True)


def first_difference(some: Sequence[Any], others: Sequence[Any]) -> int | None:
    """The first position at which two sequences differ."""
    pairs = enumerate(zip(some, others, strict=False))
    return next((i for i, (a, b) in pairs if a != b), None)


def report(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print a line for each run of each setting. Positions count the prompt as well."""
    print("setting    run  first other token  first other bits  answers  leaves vector at")
    for setting, given in runs.items():
        count = len({tuple(run["tokens"]) for run in given})
        for i, run in enumerate(given):
            places = [
                first_difference(run["tokens"], given[0]["tokens"]),
                first_difference(run["bits"], given[0]["bits"]),
            ]
            if "vector" in runs and setting != "ours":
                places.append(first_difference(run["bits"], runs["vector"][0]["bits"]))
            told = ["-" if place is None else str(PROMPT + place) for place in places]
            told.insert(2, str(count))
            widths = (17, 17, 8, 17)
            columns = "".join(f" {t:>{w}}" for t, w in zip(told, widths, strict=False))
            print(f"{setting:10} {i + 1:3}{columns}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-bf16")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=320)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--at-once", type=int, default=1, help="processes side by side")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--attention", type=int, metavar="CALLS", help="see above")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.attention:
        attention(args.attention)
        return
    if args.child:
        setting, folder = args.child
        print(json.dumps(answers(setting, Path(folder), args.tokens, args.runs)))
        return
    with chosen(args.shape, args.model) as (_, folder, _catalog):

        def ask(setting: str) -> Any:
            options = ["--tokens", str(args.tokens), "--runs", str(args.runs)]
            command = [sys.executable, "-m", "benchmarks.repeat", "--child", setting, folder]
            process = subprocess.run(
                [*command, *options],
                env={**os.environ, **SETTINGS[setting]},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            return json.loads(process.stdout.splitlines()[-1])

        with ThreadPoolExecutor(args.at_once) as pool:
            runs = dict(zip(args.settings, pool.map(ask, args.settings), strict=True))
    report(runs)
    if args.json:
        args.json.write_text(json.dumps(runs))


if __name__ == "__main__":
    main()
