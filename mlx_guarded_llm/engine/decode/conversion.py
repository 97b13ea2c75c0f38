"""Conversions between Python values and MLX arrays."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


def column(values: list[float]) -> mx.array:
    """One number for each row of a batch, as an array of float32 of shape (rows, 1)."""
    return mx.array(values, dtype=mx.float32)[:, None]


def lists(array: mx.array) -> Any:
    """The array's values as nested lists. MLX's own annotation allows for a scalar."""
    return array.tolist()
