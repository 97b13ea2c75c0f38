"""MLX's affine quantisation in NumPy, so that writing weights needs no MLX.

In each group of `group_size` numbers along the last axis w is close to
scale * q + bias, with q an unsigned integer of `bits` bits. The integers lie in
uint32 words, the first one in the lowest bits. Reference: `mx.quantize`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Weight = npt.NDArray[np.floating]


def quantize(
    weight: Weight, *, bits: int, group_size: int
) -> tuple[npt.NDArray[np.uint32], Weight, Weight]:
    """Quantise along the last axis.

    Args:
        weight: shape (..., n), n a multiple of `group_size`.
        bits: 2, 4 or 8; the others are packed in another way.
        group_size: 32, 64 or 128.

    Returns:
        Packed words of shape (..., n * bits / 32), then scales and biases of shape
        (..., n / group_size) in the type of `weight`.

    Raises:
        ValueError: the bits or the shape do not fit.
    """
    if bits not in (2, 4, 8):
        raise ValueError(f"{bits} bits are not supported; choose 2, 4 or 8")
    if weight.shape[-1] % group_size:
        raise ValueError(f"the last axis of {weight.shape} is no multiple of {group_size}")
    groups = weight.astype(np.float64).reshape(*weight.shape[:-1], -1, group_size)
    low, high = groups.min(-1), groups.max(-1)
    scales = np.maximum((high - low) / (2**bits - 1), 1e-7)
    levels = np.rint((groups - low[..., None]) / scales[..., None]).astype(np.uint32)
    words = levels.reshape(*weight.shape[:-1], -1, 32 // bits)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    packed = np.bitwise_or.reduce(words << shifts, axis=-1)
    return packed, scales.astype(weight.dtype), low.astype(weight.dtype)
