"""What the models may use of a machine: of this one, or of one that is not at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..back_end import import_hint
from ..errors import EngineDied

if TYPE_CHECKING:
    from ..memory.budget import MemoryLimits


def this_machine(memory_budget: str | None) -> MemoryLimits:
    """The device's own numbers, or the budget that was given.

    Raises:
        EngineDied: MLX cannot be imported here.
    """
    try:
        import mlx.core as mx
    except ImportError as error:
        raise EngineDied(f"MLX cannot be used ({error}).", hint=import_hint()) from error

    from ..backend.options import byte_size
    from ..memory.budget import limits

    given = None if memory_budget is None else byte_size("memory_budget", memory_budget, 1)
    device = "cpu" if mx.default_device() == mx.Device(mx.cpu) else "gpu"
    return limits({**mx.device_info(), "device": device}, budget_bytes=given)


def another_mac(memory: str) -> MemoryLimits:
    """What the models may use of a Mac with this much memory.

    Raises:
        InvalidRequest: it is no size.
    """
    from ..backend.options import byte_size
    from ..memory.budget import limits_of_mac

    return limits_of_mac(byte_size("memory", memory, 1))
