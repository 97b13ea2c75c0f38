"""The guard: when a model may load, and who waits for whom. Pure, without MLX."""

from .actions import Action, Exclusive, Fail, Load, Run, Settle, Start, Stop, Unload
from .guard import Guard
from .limits import LoadDeadline
from .room import Room, Unbounded
from .state import ModelState, Timing

__all__ = [
    "Action",
    "Exclusive",
    "Fail",
    "Guard",
    "Load",
    "LoadDeadline",
    "ModelState",
    "Room",
    "Run",
    "Settle",
    "Start",
    "Stop",
    "Timing",
    "Unbounded",
    "Unload",
]
