"""Whether a worker is hung: it is alive and makes no progress."""

from __future__ import annotations

from ..status_page import Preparation, WorkerStatus
from .death import doing

PATIENCE = 20.0  # times the longest piece of that work so far
FIRST = 10.0  # times longer for the first one: kernels are compiled, pages are cold
_LIMITED = ("load", "unload", "step")  # a user's own function may take as long as it likes


PREPARING = 2.0  # stall timeouts for preparing: the engine itself stops what it can, after one


class Watchdog:
    """Finds out whether a worker is hung. There is one for each worker.

    A process without a heartbeat for `stall_timeout` is hung whatever it does: stopped, or
    kept from running Python. A piece of work with a model is hung when it takes that long
    and `PATIENCE` times as long as any before it; the first has `FIRST` times as long.

    Args:
        stall_timeout: seconds without progress.

    Attributes:
        stuck: the request in whose preparation it hung, or None.
        stalled: seconds without progress, or without a sign of life, at the last look.
    """

    def __init__(self, stall_timeout: float) -> None:
        self._stall_timeout = stall_timeout
        self._looked = float("-inf")
        self._awake = float("-inf")  # nothing before this counts
        self.stuck: Preparation | None = None
        self.stalled = 0.0

    @property
    def interval(self) -> float:
        """Seconds to let pass between two looks."""
        return min(1.0, self._stall_timeout / 8)

    def look(self, now: float, status: WorkerStatus) -> str:
        """Why the worker counts as hung, such as "no progress for 61 s ..."; or ""."""
        if now - self._looked > self._stall_timeout / 2:
            # Nobody looked: this process stood still, and the worker perhaps too (the machine
            # slept, Ctrl-Z). What it did not do in that time proves nothing.
            self._awake = now
        self._looked = now
        what = doing(status.work, status.model)
        silent = now - max(status.heartbeat, self._awake)
        stalled = now - max(status.since, self._awake)
        self.stalled = max(0.0, silent, stalled if status.work in _LIMITED else 0.0)
        if silent > self._stall_timeout:
            return f"no sign of life for {silent:.0f} s while {what}"
        limit = self._limit(status)
        if stalled > limit:
            return f"no progress for {stalled:.0f} s while {what} (limit {limit:.0f} s)"
        limit = PREPARING * self._stall_timeout
        for request in status.preparing:
            stalled = now - max(request.since, self._awake)
            if stalled > limit:
                self.stuck = request
                what = doing("prepare", request.model)
                return f"no progress for {stalled:.0f} s while {what} (limit {limit:.0f} s)"
        return ""

    def _limit(self, status: WorkerStatus) -> float:
        if status.work not in _LIMITED:
            return float("inf")
        if status.longest <= 0:
            return FIRST * self._stall_timeout
        return max(self._stall_timeout, PATIENCE * status.longest)
