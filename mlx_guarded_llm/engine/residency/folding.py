"""Folding the rows of a batch, so that a step reads each quantised matrix once.

A step of B rows gives each layer activations of shape (B, 1, K). MLX's quantised product on CUDA
takes its rows from the last axis but one. It computes B products of one row, and reads the whole
matrix for each. As (B, K) the same rows are one product, which reads the matrix once. The bits
of the results are the same.

A quantised matrix for each head (multi-head latent attention) is worse off: in a batch, MLX 0.32
on CUDA multiplies all heads by the first head's matrix. Folded, the results are right.

No other product needs this:

- Dense products are folded by `mx.matmul` itself, on every device; but not those with a matrix
  for each head.
- On Metal the quantised product counts the rows of all leading axes if they are contiguous
  (`QuantizedMatmul::eval_gpu` in MLX's `backend/metal/quantized.cpp`; read, not run).
- On a CPU each row reads the matrix anew, folded or not.
- Experts (`SwitchLinear`, `QuantizedSwitchLinear`): each row has matrices of its own.

`benchmarks/products.py` measures all of this.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear


def fold_rows(model: Any) -> None:
    """Make each layer of a model that multiplies by a quantised matrix fold the rows it is given.

    The layers keep their parameters, and the names of these. Call it once the model has all its
    layers, adapters included.

    Args:
        model: an mlx module, changed in place.
    """
    for _, layer in model.named_modules():
        if folding := _folding(layer):
            kind: Any = type(layer)
            layer.__class__ = _folded(kind, folding)


def _folding(layer: Any) -> Any:
    """How the rows of a layer are to be folded; None if they are, or it has none to fold."""
    if isinstance(layer, (_ByHead, _Linear, _Output)):
        return None
    if isinstance(layer, (MultiLinear, QuantizedMultiLinear)):
        return _ByHead
    if "scales" in layer and "weight" in layer and layer["weight"].ndim == 2:
        return _Output if hasattr(layer, "as_linear") else _Linear
    return None


@cache
def _folded(kind: Any, folding: Any) -> type:
    return type(f"Folded{kind.__name__}", (folding, kind), {})


class _Linear:
    """A layer that is called with activations of shape (..., K)."""

    def __call__(self, x: mx.array) -> Any:
        return _flat(super().__call__, x)  # type: ignore[misc]


class _Output:
    """An embedding, which multiplies where it is also the output head of the model."""

    def as_linear(self, x: mx.array) -> Any:
        return _flat(super().as_linear, x)  # type: ignore[misc]


class _ByHead:
    """A matrix for each head. The rows of one head lie side by side once heads come first."""

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        product: Callable[..., mx.array] = super().__call__  # type: ignore[misc]
        if x.ndim != 4 or x.shape[0] == 1:
            return product(x, *args, **kwargs)
        rows = x.swapaxes(0, 1).flatten(1, 2)  # from (B, heads, L, K) to (heads, B * L, K)
        found = product(rows, *args, **kwargs)
        return mx.unflatten(found, 1, (x.shape[0], x.shape[2])).swapaxes(0, 1)


def _flat(product: Callable[[mx.array], Any], x: mx.array) -> Any:
    """A product over (rows, K) for activations of shape (..., K). It may return several arrays."""
    leading = x.shape[:-1]
    if x.ndim < 3 or x.size == leading[-1] * x.shape[-1]:
        return product(x)
    found = product(x.flatten(0, -2))
    return tree_map(lambda array: mx.unflatten(array, 0, leading), found)
