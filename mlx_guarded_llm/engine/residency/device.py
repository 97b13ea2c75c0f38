"""Which device MLX computes on, and what of it is not used."""

from __future__ import annotations

import os

import mlx.core as mx


def on_cuda() -> bool:
    """Whether it is an NVIDIA GPU."""
    return bool(mx.cuda.is_available() and mx.default_device() == mx.Device(mx.gpu))


def leave_out_cudnn() -> None:
    """Have MLX compute attention itself, without cuDNN, for the whole process.

    For a prompt, cuDNN makes a plan for each new pair of lengths, which takes longer than the
    attention, and the parts of a chat never have the same lengths twice. For a single query, its
    results can have other bits from call to call, so greedy answers differ from run to run.
    `benchmarks/repeat.py` measures the latter.

    MLX asks for this when it first computes attention. Whoever sets the variable decides.
    """
    os.environ.setdefault("MLX_CUDA_USE_CUDNN_SDPA", "0")
