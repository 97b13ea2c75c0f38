"""The other ranks of a worker, in the moment in which MLX connects it with them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import psutil

_GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


class JoiningRanks:
    """Looks after them in place of the worker, none of whose threads runs then; see `Joining`.

    Attributes:
        interval: seconds to let pass between two looks.
    """

    interval = 0.1

    def __init__(self) -> None:
        self._ranks: list[tuple[psutil.Process | None, str]] = []

    def __bool__(self) -> bool:
        return bool(self._ranks)

    def watch(self, ranks: Sequence[tuple[int, str]]) -> None:
        """Look after these from now on."""
        self._ranks = [(_process(pid), name) for pid, name in ranks]

    def lost(self) -> str:
        """Which one has ended, in words; "" if none has."""
        gone = (name for process, name in self._ranks if process is None or _ended(process))
        name = next(gone, "")
        return f"{name}, which was to have a part of the model, ended." if name else ""

    def end(self) -> None:
        """The worker is gone: end those that would wait for it."""
        ranks, self._ranks = self._ranks, []
        for process, _ in ranks:
            with contextlib.suppress(psutil.Error):
                if process is not None:
                    process.kill()


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() in _GONE
    except psutil.Error:
        return True
