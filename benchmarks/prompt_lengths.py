"""How long raw mlx-lm takes for a part of a prompt, the first time with its lengths and again.

    python -m benchmarks.prompt_lengths [--shape llama-8b] [--new 147] [--held 0 265 1300 4000]
    MLX_CUDA_USE_CUDNN_SDPA=0 python -m benchmarks.prompt_lengths --new 1024 2048 --held 0

On CUDA, cuDNN makes a plan for each new pair of lengths, unless the variable leaves it out.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

from .shapes import SHAPES, chosen

TIMES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-bf16")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--new", type=int, nargs="+", default=[147], help="tokens to compute")
    parser.add_argument("--held", type=int, nargs="+", default=[0, 265, 1300, 4000])
    args = parser.parse_args()
    with chosen(args.shape, args.model) as (_, folder, _catalog):
        from mlx_lm.utils import load_model

        model, _ = load_model(Path(folder))
        milliseconds(model, 64, 32)  # what the first pass compiles does not count
        print("held   new  first and again, ms")
        for held, new in itertools.product(args.held, args.new):
            taken = [f"{milliseconds(model, held, new):8.1f}" for _ in range(TIMES)]
            print(f"{held:4} {new:5}{''.join(taken)}", flush=True)


def milliseconds(model: Any, held: int, new: int) -> float:
    """What it takes to compute `new` tokens behind `held` ones."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    if held:
        model(mx.array([[5 + i % 90 for i in range(held)]]), cache=cache)
    mx.eval([layer.state for layer in cache])
    began = time.perf_counter()
    model(mx.array([[7 + i % 80 for i in range(new)]]), cache=cache)
    mx.eval([layer.state for layer in cache])
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
