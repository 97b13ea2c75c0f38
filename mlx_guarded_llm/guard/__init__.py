"""The guard: when a model may load, and who waits for whom. Pure, without MLX.

`guard` has the inputs, `rules` the decisions, `transitions` every change of the `state`, and
`actions` what the owner has to carry out; `forecast` runs a copy of it ahead. The owner is
`backend.dispatcher`: it makes one call at a time, from one thread. The guard itself asks only a
`MemoryLedger`, which is `memory.ledger.Ledger`, and emits `record.events`.
"""

from .actions import Action, Exclusive, Fail, Load, Run, Settle, Start, Stop, Unload
from .guard import Guard
from .limits import GuardLimits, LoadDeadline, Priority
from .memory_ledger import MemoryLedger, UnlimitedMemory
from .state import ModelState, Status, Timing

__all__ = [
    "Action",
    "Exclusive",
    "Fail",
    "Guard",
    "GuardLimits",
    "Load",
    "LoadDeadline",
    "MemoryLedger",
    "ModelState",
    "Priority",
    "Run",
    "Settle",
    "Start",
    "Status",
    "Stop",
    "Timing",
    "UnlimitedMemory",
    "Unload",
]
