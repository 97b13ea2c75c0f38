"""The limits of the guard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LoadDeadline = Literal["pause", "raise"]
Priority = Literal["interactive", "batch"]


@dataclass(frozen=True, kw_only=True)
class GuardLimits:
    """How long the guard lets work wait, and how much it accepts.

    Args:
        load_wait: seconds a job waits for active generations before its deadline.
        fairness_window: seconds for which newcomers may pass what waits.
        batch_wait: seconds by which interactive work may have come later than batch work and
            still goes before it.
        on_load_deadline: at the deadline "pause" the generations, or "raise"
            `LoadDeferredTimeout` to whoever waits for the job.
        max_queue: the most waiting requests, and the most pending jobs.
        max_active: the most active generations of one model.
        keep_alive: seconds after which an idle model is unloaded; None keeps it.

    Raises:
        ValueError: a time is negative, or a bound less than one.
    """

    load_wait: float = 120.0
    fairness_window: float = 5.0
    batch_wait: float = 30.0
    on_load_deadline: LoadDeadline = "pause"
    max_queue: int = 1024
    max_active: int = 32
    keep_alive: float | None = None

    def __post_init__(self) -> None:
        times = (self.load_wait, self.fairness_window, self.batch_wait, self.keep_alive or 0.0)
        if not all(time >= 0 for time in times):  # NaN included
            raise ValueError(
                "load_wait, fairness_window, batch_wait and keep_alive are seconds, 0 or more."
            )
        if self.max_queue < 1 or self.max_active < 1:
            raise ValueError("max_queue and max_active are at least 1.")
        if self.on_load_deadline not in ("pause", "raise"):
            raise ValueError(
                f"on_load_deadline is 'pause' or 'raise', not {self.on_load_deadline!r}."
            )
