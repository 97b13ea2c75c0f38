"""Whether a worker is hung: it lives, and nothing moves."""

from __future__ import annotations

from dataclasses import dataclass

from ..engine.pulse import Work
from .death import doing

PATIENCE = 20.0  # times the longest piece of that work so far
FIRST = 10.0  # times longer for the first one: kernels are compiled, pages are cold
_LIMITED = ("load", "unload", "step")  # a user's own function may take as long as it likes


@dataclass(frozen=True, kw_only=True)
class Vital:
    """What a worker shows of itself. All times are `time.monotonic()` seconds.

    Attributes:
        beat: when its Python last showed life.
        work: what its MLX thread does, "" for nothing.
        model: the model it does it with (the label of a run), or "".
        since: when that began or last went on.
        longest: seconds of the longest finished piece of that work with that model;
            0.0 before the first.
    """

    beat: float
    work: Work = ""
    model: str = ""
    since: float = 0.0
    longest: float = 0.0


class Watchdog:
    """Finds a worker that stands still. One for each worker.

    A process that gives no beat for `stall_timeout` is hung whatever it does: stopped, or
    kept from running Python. A piece of work with a model is hung when it takes that long
    and `PATIENCE` times as long as any before it; the first has `FIRST` times as long.

    Args:
        stall_timeout: seconds without progress.
    """

    def __init__(self, stall_timeout: float) -> None:
        self._stall_timeout = stall_timeout
        self._looked = float("-inf")
        self._awake = float("-inf")  # nothing before this counts

    @property
    def interval(self) -> float:
        """Seconds to let pass between two looks."""
        return min(1.0, self._stall_timeout / 8)

    def look(self, now: float, vital: Vital) -> str:
        """Why the worker is taken for hung, such as "no progress for 61 s ..."; or ""."""
        if now - self._looked > self._stall_timeout / 2:
            # Nobody looked: we stood still ourselves, and the worker perhaps with us (the
            # machine slept, Ctrl-Z). What it did not do meanwhile proves nothing.
            self._awake = now
        self._looked = now
        what = doing(vital.work, vital.model)
        silent = now - max(vital.beat, self._awake)
        if silent > self._stall_timeout:
            return f"no sign of life for {silent:.0f} s while {what}"
        stalled = now - max(vital.since, self._awake)
        limit = self._limit(vital)
        if stalled > limit:
            return f"no progress for {stalled:.0f} s while {what} (limit {limit:.0f} s)"
        return ""

    def _limit(self, vital: Vital) -> float:
        if vital.work not in _LIMITED:
            return float("inf")
        if vital.longest <= 0:
            return FIRST * self._stall_timeout
        return max(self._stall_timeout, PATIENCE * vital.longest)
