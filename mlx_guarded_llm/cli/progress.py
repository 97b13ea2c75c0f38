"""The progress of a download, a load or a prefill, as one line on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from ..record.phrases import seconds, size
from .console import err, write
from .facts import STAGES

if TYPE_CHECKING:
    from ..models import ModelFiles, Progress


class ProgressLine:
    """Shows the latest stage, and removes it when it is closed.

    It shows nothing if stderr is no terminal, or one that cannot move its cursor. `update` may
    be called from any thread; after `close` it does nothing.
    """

    def __init__(self, name: str, *, console: Console | None = None) -> None:
        """Make one. Entering it shows it.

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
            disable=not console.is_interactive,  # a terminal whose cursor can be moved
        )
        self._task = self._bars.add_task(f"starting {name}", total=None)

    def update(self, progress: Progress) -> None:
        """Show this progress."""
        if progress.stage != self._stage:
            self._stage = progress.stage
            self._bars.reset(self._task, start=True, total=progress.total)
        self._bars.update(
            self._task,
            description=f"{STAGES.get(progress.stage, progress.stage)} {self._name}",
            completed=progress.done,
            total=progress.total,
            unit="tokens" if progress.stage == "prefill" else "bytes",
        )

    def write(self, text: str, style: str = "") -> None:
        """Remove the line, and write a piece of an answer to stdout."""
        self.close()
        write(text, style)

    def close(self) -> None:
        """Remove the line."""
        self._bars.stop()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def fetch(name: str, *, revision: str | None = None) -> ModelFiles:
    """As `mlx_guarded_llm.pull`, with its progress shown."""
    from ..models.default_catalog import pull

    with ProgressLine(name) as progress:
        return pull(name, revision=revision, on_progress=progress.update)


class _Amount(ProgressColumn):
    """How much is done, and how long the rest will take."""

    def render(self, task: Task) -> Text:
        if not task.completed:
            return Text("")
        if task.fields.get("unit") == "tokens":
            text = f"{task.completed:,.0f}" + (f" of {task.total:,.0f}" if task.total else "")
            return Text(f"{text} tokens", style="dim")
        text = size(task.completed) + (f" of {size(task.total)}" if task.total else "")
        left = task.time_remaining
        return Text(text + (f", {seconds(left)} left" if left else ""), style="dim")
