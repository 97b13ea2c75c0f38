"""How much memory the models may use on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPU_SHARE = 0.6
GPU_SHARE = 0.9
MAC_SHARE = 2 / 3  # of its memory; Metal's own number, which only a Mac tells, replaces it there

# The files with the limit of a container, with what it uses of that, and with its file cache.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
_CGROUP_ROOT = Path("/sys/fs/cgroup")


PREFIX_SHARE = 0.05
PREFIX_LIMIT = 4 * 1024**3
PREFILL_STEP = {"cpu": 512, "gpu": 2048}
EMBED_STEP = {"cpu": 128, "gpu": 2048}  # larger ones are no faster on a CPU


@dataclass(frozen=True)
class MemoryLimits:
    """The memory limits of a backend.

    Attributes:
        budget_bytes: for all of them together.
        prefix_cache_bytes: of that, for KV caches of prompts that begin alike.
        prefill_step_size: prompt tokens computed at once.
        embed_step_size: tokens of texts to embed computed at once; no more than that.
        share_of_free: the budget is this share of the memory that was free, which lacked what
            other programs held; 0.0 if it is a share of all there is.
    """

    budget_bytes: int
    prefix_cache_bytes: int
    prefill_step_size: int
    embed_step_size: int
    share_of_free: float = 0.0


def limits(
    device_info: Mapping[str, Any],
    *,
    budget_bytes: int | None = None,
    prefix_cache_bytes: int | None = None,
    prefill_step_size: int | None = None,
) -> MemoryLimits:
    """The limits that the user set, with the defaults of the device for the others.

    Args:
        device_info: what `mx.device_info()` returned, and "device": "cpu" or "gpu".
        budget_bytes: None takes `default_budget`.
        prefix_cache_bytes: None takes 5 % of the budget, at most 4 GiB.
        prefill_step_size: None takes 2048 tokens on a GPU and 512 on a CPU.
    """
    budget = default_budget(device_info) if budget_bytes is None else budget_bytes
    if prefix_cache_bytes is None:
        prefix_cache_bytes = min(int(budget * PREFIX_SHARE), PREFIX_LIMIT)
    device = device_info["device"]
    step = prefill_step_size or PREFILL_STEP[device]
    return MemoryLimits(
        budget,
        prefix_cache_bytes,
        step,
        min(step, EMBED_STEP[device]),
        share_of_free=CPU_SHARE if budget_bytes is None and _total(device_info) is None else 0.0,
    )


def limits_of_mac(memory_bytes: int) -> MemoryLimits:
    """The limits of a Mac that is not at hand, by its memory."""
    return limits({"device": "gpu", "max_recommended_working_set_size": memory_bytes * MAC_SHARE})


def default_budget(device_info: Mapping[str, Any]) -> int:
    """The budget in bytes when the user sets none.

    Metal: what the driver recommends as working set. CUDA: 90 % of the card's memory.
    CPU: 60 % of the RAM available now, within the container's limit.

    Args:
        device_info: what `mx.device_info()` returned.
    """
    total = _total(device_info)
    return int(available_ram() * CPU_SHARE) if total is None else total


def _total(device_info: Mapping[str, Any]) -> int | None:
    """What a GPU has for models; None for a CPU, whose memory everything else shares."""
    recommended = device_info.get("max_recommended_working_set_size")
    if recommended:
        return int(recommended)
    total = device_info.get("total_memory")
    return int(total * GPU_SHARE) if total else None


def available_ram() -> int:
    """How many bytes of RAM this process may still take."""
    import psutil

    available = int(psutil.virtual_memory().available)
    for limit_file, usage_file, stat_file in _CGROUPS:
        limit = _read_number(_CGROUP_ROOT / limit_file)
        if limit is not None:
            used = _read_number(_CGROUP_ROOT / usage_file) or 0
            # The inactive file cache counts as used, but is freed when it is needed.
            used -= min(used, _inactive_file(_CGROUP_ROOT / stat_file))
            available = min(available, max(0, limit - used))
    return available


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _inactive_file(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    numbers = (line.split() for line in lines)
    return next((int(words[1]) for words in numbers if words[:1] == ["inactive_file"]), 0)
