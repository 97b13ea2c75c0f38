"""What a product of activations with a weight matrix costs, by how its rows lie.

    python -m benchmarks.products [--columns 4096 --outputs 14336] [--kinds affine-4 mxfp4]

A step of B rows gives a layer activations of shape (B, 1, K): "apart". Folded they are
(1, B, K). "Filled" are folded rows with as many zeros behind them as make 8, from which on MLX
has another kernel on CUDA. Printed: microseconds of one product; how far a result is from the
one in float32, relative to its norm; and whether it has the same bits as each row alone. The
matrices take turns, so that none is found in the device's cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.linear import Linear
from mlx_lm.models.mla import MultiLinear
from mlx_lm.models.switch_layers import SwitchLinear

from mlx_guarded_llm.engine.residency.folding import fold_rows

KINDS: dict[str, dict[str, Any] | None] = {
    "affine-4": {"group_size": 64, "bits": 4},
    "affine-8": {"group_size": 64, "bits": 8},
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "nvfp4": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
    "dense": None,
    "heads-4": {"group_size": 64, "bits": 4},  # a matrix for each head
    "heads": None,
    "experts-4": {"group_size": 64, "bits": 4},  # each row has matrices of its own
}
HEADS, FROM, TO = 128, 128, 512  # as in DeepSeek-V3
EXPERTS, CHOSEN, WIDTH, INNER = 128, 8, 2048, 768  # as in Qwen3-30B-A3B
FULL = 8  # rows
REPEATS = 7

Product = Callable[[mx.array], mx.array]


def layers(kind: str, columns: int, outputs: int, count: int) -> list[Any]:
    """So many layers of a kind with random weights."""
    made = []
    for seed in range(count):
        mx.random.seed(seed)
        layer: Any
        if kind.startswith("heads"):
            layer = MultiLinear(FROM, TO, HEADS)
        elif kind.startswith("experts"):
            layer = SwitchLinear(WIDTH, INNER, EXPERTS, bias=False)
        else:
            layer = Linear(columns, outputs, bias=False)
        layer.set_dtype(mx.bfloat16)
        options = KINDS[kind]
        layer = layer if options is None else layer.to_quantized(**options)
        mx.eval(layer.parameters())
        made.append(layer)
    return made


def activations(kind: str, rows: int, columns: int) -> mx.array:
    mx.random.seed(1000 + rows)
    if kind.startswith("heads"):
        shape: tuple[int, ...] = (rows, HEADS, 1, FROM)
    elif kind.startswith("experts"):
        shape = (rows, 1, 1, 1, WIDTH)
    else:
        shape = (rows, 1, columns)
    return mx.random.normal(shape).astype(mx.bfloat16)


def called(kind: str, layer: Any) -> Product:
    """The layer as a function of activations alone."""
    if not kind.startswith("experts"):
        product: Product = layer
        return product

    def experts(x: mx.array) -> mx.array:
        indices = mx.arange(x.shape[0] * CHOSEN).reshape(x.shape[0], 1, CHOSEN) * 7 % EXPERTS
        chosen: mx.array = layer(x, indices)
        return chosen

    return experts


def filled(product: Product) -> Product:
    """With zeros behind the rows, up to 8."""

    def padded(x: mx.array) -> mx.array:
        rows = x.shape[0]
        return product(mx.pad(x, [(0, FULL - rows), *[(0, 0)] * (x.ndim - 1)]))[:rows]

    return padded


def microseconds(products: list[Product], x: mx.array) -> float:
    """Of one product; the median of several passes over all matrices."""
    mx.eval([product(x) for product in products])
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        mx.eval([product(x) for product in products])
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times) / len(products)


def reference(kind: str, layer: Any, x: mx.array) -> mx.array:
    """The product in float32, with the weights as they are kept."""
    options = KINDS[kind]
    weight = layer.weight
    if options is not None:
        weight = mx.dequantize(weight, layer.scales, layer.get("biases"), **options)
    product: mx.array = x.astype(mx.float32) @ weight.astype(mx.float32).swapaxes(-1, -2)
    return product


def measure(kind: str, rows: int, apart: list[Any], folded: list[Any], columns: int) -> list[Any]:
    x = activations(kind, rows, columns)
    ways = {"apart": [called(kind, layer) for layer in apart]}
    if not kind.startswith("experts"):
        ways["folded"] = [called(kind, layer) for layer in folded]
        if 1 < rows < FULL:
            ways["filled"] = [filled(product) for product in ways["folded"]]
    alone = true = None
    if not kind.startswith("experts"):
        alone = mx.concatenate([ways["apart"][0](x[i : i + 1]) for i in range(rows)])
        true = reference(kind, apart[0], x)
    found = []
    for way, products in ways.items():
        result = products[0](x)
        error = None
        if true is not None:
            error = float(mx.linalg.norm(result - true) / mx.linalg.norm(true))
        found.append(
            {
                "kind": kind,
                "rows": rows,
                "way": way,
                "us": microseconds(products, x),
                "error": error,
                "as alone": None if alone is None else bool(mx.array_equal(result, alone)),
                "as apart": bool(mx.array_equal(result, ways["apart"][0](x))),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--outputs", type=int, default=14336)
    parser.add_argument("--matrices", type=int, default=16)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(mx.device_info().get("device_name"))
    print("kind       rows  way       us/product     error  as alone  as apart")
    figures: list[Any] = []
    for kind in args.kinds:
        apart = layers(kind, args.columns, args.outputs, args.matrices)
        folded = layers(kind, args.columns, args.outputs, args.matrices)
        for layer in folded:
            fold_rows(layer)
        for rows in args.rows:
            try:
                found = measure(kind, rows, apart, folded, args.columns)
            except (RuntimeError, ValueError) as raised:  # not every kind runs on every device
                print(f"{kind:10} {rows:4}  {raised}", flush=True)
                continue
            figures += found
            for one in found:
                error = "" if one["error"] is None else f"{one['error']:.2e}"
                print(
                    f"{kind:10} {rows:4}  {one['way']:7} {one['us']:12.1f} {error:>9} "
                    f"{one['as alone']!s:>9} {one['as apart']!s:>9}",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
