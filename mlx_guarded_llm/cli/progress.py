"""One line on stderr that tells how far a download, a load or a prefill has come."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from .console import err
from .words import seconds, size

if TYPE_CHECKING:
    from ..models import Progress

_STAGES = {
    "download": "downloading",
    "import": "converting",
    "verify": "checking",
    "load": "loading",
    "prefill": "reading the prompt",
}


class ProgressLine:
    """Shows the latest stage; nothing is left of it when it is closed.

    Nothing is shown where stderr is no terminal. `update` may be called from any
    thread, and after `close`, when it does nothing.
    """

    def __init__(self, name: str, *, console: Console | None = None) -> None:
        """Make one; entering it shows it.

        Args:
            name: what it is about, such as a model's name.
            console: where; stderr by default.
        """
        console = console or err()
        self._name = name
        self._stage = ""
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Amount(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task(f"starting {name}", total=None)

    def update(self, progress: Progress) -> None:
        """Show where it is now."""
        if progress.stage != self._stage:
            self._stage = progress.stage
            self._bars.reset(self._task, start=True, total=progress.total)
        self._bars.update(
            self._task,
            description=f"{_STAGES.get(progress.stage, progress.stage)} {self._name}",
            completed=progress.done,
            total=progress.total,
            unit="tokens" if progress.stage == "prefill" else "bytes",
        )

    def close(self) -> None:
        """Take the line away."""
        self._bars.stop()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Amount(ProgressColumn):
    """How much of how much, and how long it will still take."""

    def render(self, task: Task) -> Text:
        if not task.completed:
            return Text("")
        if task.fields.get("unit") == "tokens":
            text = f"{task.completed:,.0f}" + (f" of {task.total:,.0f}" if task.total else "")
            return Text(f"{text} tokens", style="dim")
        text = size(task.completed) + (f" of {size(task.total)}" if task.total else "")
        left = task.time_remaining
        return Text(text + (f", {seconds(left)} left" if left else ""), style="dim")
