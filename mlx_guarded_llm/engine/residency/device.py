"""Which device MLX computes on."""

from __future__ import annotations

import mlx.core as mx


def on_cuda() -> bool:
    """Whether it is an NVIDIA GPU."""
    return bool(mx.cuda.is_available() and mx.default_device() == mx.Device(mx.gpu))
