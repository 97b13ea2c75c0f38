"""Progress bars of pulls, loads and prefills, for a notebook or a terminal."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any, TextIO

from .cell_bar import CellBar

if TYPE_CHECKING:
    from ..models import Progress

DELAY = 0.5  # seconds; shorter work needs no bar
LASTING = 2.0  # seconds; the bar of a longer pull or load stays on the page
MIN_TOKENS = 256  # a shorter prefill needs no bar
_LONGEST_NAME = 32  # a longer one loses its front, as the ends of names tell models apart
_UNITS = {"prefill": " tokens", "embed": " texts"}


class ProgressBars:
    """An `on_progress` that draws a bar for each pull, load and long prefill.

        with Backend(on_progress=ProgressBars()) as backend:
            backend.generate("llama-8b", "Why is the sky blue?")

    `default_backend()` uses one in a notebook. It may serve several backends and be
    called from any thread.

    Args:
        file: where to draw; None is the output of a cell in a notebook, elsewhere stderr.
        delay: seconds before a bar appears.
    """

    def __init__(self, *, file: TextIO | None = None, delay: float = DELAY) -> None:
        self._file = file
        self._delay = delay
        self._bars: dict[tuple[str, str, str], Any] = {}
        self._lock = threading.Lock()
        self._make = CellBar if file is None and in_notebook() else _tqdm()

    def __call__(self, progress: Progress) -> None:
        """Show this progress."""
        key = (progress.stage, progress.model, progress.request_id)
        over = progress.over or progress.done == progress.total
        with self._lock:
            bar = self._bars.get(key)
            if bar is None:
                short = progress.stage == "prefill" and (progress.total or 0) < MIN_TOKENS
                if over or short:
                    return
                bar = self._bars[key] = self._open(progress)
            bar.update(progress.done - bar.n)
            if over:
                del self._bars[key]
                lasted = bar.format_dict["elapsed"] > LASTING
                bar.leave = lasted and progress.stage not in _UNITS
                bar.close()

    def _open(self, progress: Progress) -> Any:
        name = progress.model
        if len(name) > _LONGEST_NAME:
            name = "…" + name[1 - _LONGEST_NAME :]
        return self._make(
            desc=f"{progress.stage} {name}".rstrip(),
            total=progress.total,
            initial=progress.done,
            unit=_UNITS.get(progress.stage, "B"),
            unit_scale=progress.stage not in _UNITS,
            delay=self._delay,
            file=self._file,
        )


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


def _tqdm() -> Any:
    from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

    return tqdm
