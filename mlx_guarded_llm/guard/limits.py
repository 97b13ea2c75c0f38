"""The numbers the guard goes by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LoadDeadline = Literal["pause", "raise"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """See `Guard` for what each of them means.

    Raises:
        ValueError: a time is negative, or a bound less than one.
    """

    load_wait: float
    fairness_window: float
    on_load_deadline: LoadDeadline
    max_queue: int
    max_active: int
    keep_alive: float | None

    def __post_init__(self) -> None:
        times = (self.load_wait, self.fairness_window, self.keep_alive or 0.0)
        if not all(time >= 0 for time in times):  # NaN included
            raise ValueError("load_wait, fairness_window and keep_alive are seconds, 0 or more.")
        if self.max_queue < 1 or self.max_active < 1:
            raise ValueError("max_queue and max_active are at least 1.")
        if self.on_load_deadline not in ("pause", "raise"):
            raise ValueError(
                f"on_load_deadline is 'pause' or 'raise', not {self.on_load_deadline!r}."
            )
