"""The NVIDIA GPUs of this machine that MLX may use, found without MLX."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..back_end import installed

VARIABLE = "CUDA_VISIBLE_DEVICES"

_BACK_ENDS = ("mlx-cuda-13", "mlx-cuda-12")
_DEVICES = Path("/dev")
_DEVICE = re.compile(r"nvidia\d+")


def visible_gpus(
    environ: Mapping[str, str] = os.environ, devices: Path = _DEVICES
) -> tuple[str, ...]:
    """The name of each for `CUDA_VISIBLE_DEVICES`, in CUDA's order; none without MLX's CUDA.

    Args:
        environ: in which the variable may leave some out.
        devices: the folder of devices.
    """
    if not any(map(installed, _BACK_ENDS)):
        return ()
    listed = environ.get(VARIABLE)
    if listed is not None:
        names = tuple(part.strip() for part in listed.split(","))
        none = [i for i, name in enumerate(names) if name in ("", "-1")]  # CUDA stops there
        return names[: none[0]] if none else names
    try:
        found = sum(1 for entry in devices.iterdir() if _DEVICE.fullmatch(entry.name))
    except OSError:
        return ()
    return tuple(map(str, range(found)))


def see_one_gpu() -> tuple[str, ...]:
    """Leave this process the first of its GPUs, before it imports MLX. Returns all of them.

    MLX computes on one. Where it saw two, MLX 0.32.4 could not copy what the CPU was to read.
    """
    gpus = visible_gpus()
    if len(gpus) > 1:
        os.environ[VARIABLE] = gpus[0]
    return gpus
