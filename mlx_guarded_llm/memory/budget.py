"""How much memory the models may use on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CPU_SHARE = 0.6
GPU_SHARE = 0.9

_CGROUP_FILES = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def default_budget(device_info: Mapping[str, Any]) -> int:
    """The budget in bytes when the user sets none.

    Metal: what the driver recommends as working set. CUDA: 90 % of the card's memory.
    CPU: 60 % of the RAM available now, within the container's limit.

    Args:
        device_info: what `mx.device_info()` returned.
    """
    recommended = device_info.get("max_recommended_working_set_size")
    if recommended:
        return int(recommended)
    total = device_info.get("total_memory")
    if total:
        return int(total * GPU_SHARE)
    return int(available_ram() * CPU_SHARE)


def available_ram() -> int:
    """Bytes of RAM this process may still take."""
    import psutil

    available = int(psutil.virtual_memory().available)
    limits = [limit for limit in map(_read_limit, _CGROUP_FILES) if limit is not None]
    return min([available, *limits])


def _read_limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None
