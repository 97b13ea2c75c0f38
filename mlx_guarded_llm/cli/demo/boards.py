"""Answers shown as they come: in panels on a terminal, as labelled lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self

from rich.box import ROUNDED
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ...record import Event
from ...record.histories import Histories
from ...record.log import line
from ...record.phrases import seconds
from ..console import harmless, short

if TYPE_CHECKING:
    from .scene import Part

STYLES = {"A": "green", "B": "cyan", "guard": "yellow"}
_SHOWN_EVENTS = 6  # events that the guard's panel shows
_SIDE_BY_SIDE = 100  # columns
_QUIET = {"request.queued", "request.first_token", "engine.started"}


class Board(Protocol):
    """Shows answers and events. It is used in a `with` statement and from one thread."""

    def add(self, label: str, text: str) -> None:
        """The next piece of an answer."""

    def tell(self, events: Sequence[Event]) -> None:
        """The next events of the record, often none."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class LineBoard:
    """Lines of about equal length, each with its time and its source."""

    def __init__(self, parts: Sequence[Part], console: Console) -> None:
        self._parts = parts
        self._console = console
        self._names = {part.label: f"{part.label} {short(part.model)}" for part in parts}
        self._names["guard"] = "guard"
        self._pending = {part.label: "" for part in parts}
        self._margin = max(map(len, self._names.values()))
        self._width = max(20, console.width - self._margin - 14)
        self._began: float | None = None  # the first event, as in the timeline

    def add(self, label: str, text: str) -> None:
        pending = self._pending[label] + harmless(text)
        while (cut := _cut(pending, self._width)) is not None:
            self._print(label, pending[:cut], time.monotonic())
            pending = pending[cut:].removeprefix("\n").lstrip(" ")
        self._pending[label] = pending

    def tell(self, events: Sequence[Event]) -> None:
        for event in events:
            self._began = event.time if self._began is None else self._began
            if event.kind not in _QUIET:
                self._flush(event.time)
                self._print("guard", _line(event, self._parts), event.time)

    def _flush(self, at: float) -> None:
        for label, text in self._pending.items():
            self._print(label, text, at)
            self._pending[label] = ""

    def _print(self, label: str, text: str, at: float) -> None:
        if text.strip():
            name = Text(self._names[label].ljust(self._margin), style=STYLES[label])
            when = seconds(at - (at if self._began is None else self._began)).rjust(7)
            self._console.print(
                Text(when, style="dim"), name, "|", Text(text.strip()), soft_wrap=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush(time.monotonic())


def _line(event: Event, parts: Sequence[Part]) -> str:
    """An event as one line, with folders as short names."""
    text = line(event)
    for part in parts:
        text = text.replace(f"{part.request_id} ({part.model})", part.request_id)
        text = text.replace(part.model, short(part.model))
    return text


def _cut(text: str, width: int) -> int | None:
    """Where a line may end: at a newline, or before a word that does not fit."""
    if "\n" in text[: width + 1]:
        return text.index("\n")
    if len(text) <= width:
        return None
    space = text.rfind(" ", 1, width + 1)
    return space if space > 0 else width


class PanelBoard:
    """A panel for each answer and one for the guard, redrawn in place."""

    def __init__(self, parts: Sequence[Part], console: Console) -> None:
        self._parts = parts
        self._console = console
        self._texts = {part.label: "" for part in parts}
        self._histories = Histories()
        self._seen = False
        self._lines: list[tuple[float, str]] = []
        self._live = Live(
            get_renderable=self._draw,
            console=console,
            refresh_per_second=8,
            transient=True,
            # The witness writes to stderr just before it aborts; that must not be held back.
            redirect_stderr=False,
        )

    def add(self, label: str, text: str) -> None:
        self._texts[label] += harmless(text)

    def tell(self, events: Sequence[Event]) -> None:
        for event in events:
            if not self._seen:
                self._seen, self._histories.first = True, event.time
            self._histories.add(event)
            if event.kind not in _QUIET:
                self._lines.append((event.time, _line(event, self._parts)))

    def _draw(self) -> RenderableType:
        return Group(self._answers(_Tail), self._events())

    def _answers(self, shape: type[_Tail] | type[Text]) -> RenderableType:
        side_by_side = self._console.width >= _SIDE_BY_SIDE
        lines = (self._console.height - _SHOWN_EVENTS - 4) // (1 if side_by_side else 2) - 3
        lines = max(3, min(lines, 14 if side_by_side else 7))
        panels = []
        for part in self._parts:
            text = self._texts[part.label]
            question = Text(part.prompt, style="dim italic", no_wrap=shape is _Tail)
            question.overflow = "ellipsis" if shape is _Tail else "fold"
            panels.append(
                Panel(
                    Group(question, _Tail(text, lines) if shape is _Tail else Text(text.strip())),
                    title=Text.assemble(
                        (f" {part.label} ", f"bold reverse {STYLES[part.label]}"),
                        f" {short(part.model)} ",
                    ),
                    title_align="left",
                    subtitle=Text(f" {self._state(part)} ", style="dim"),
                    subtitle_align="right",
                    border_style=STYLES[part.label],
                    box=ROUNDED,
                )
            )
        if not side_by_side:
            return Group(*panels)
        grid = Table.grid(expand=True, padding=(0, 1))
        for _ in panels:
            grid.add_column(ratio=1, overflow="fold")
        grid.add_row(*panels)
        return grid

    def _events(self) -> Panel:
        began = self._histories.first
        rows = Table.grid(padding=(0, 1))
        rows.add_column(justify="right", no_wrap=True, style="dim", min_width=6)
        rows.add_column(no_wrap=True, overflow="ellipsis")
        for at, text in self._lines[-_SHOWN_EVENTS:]:
            rows.add_row(seconds(at - began), text)
        for _ in range(_SHOWN_EVENTS - len(self._lines)):
            rows.add_row("", "")
        return Panel(
            rows, title="guard", title_align="left", border_style=STYLES["guard"], box=ROUNDED
        )

    def _state(self, part: Part) -> str:
        return state(self._histories, part.request_id, time.monotonic())

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        self._console.print(self._answers(Text))


def state(histories: Histories, request_id: str, now: float) -> str:
    """What a request is doing, in a few words."""
    request = histories.requests.get(request_id)
    if request is None:
        return "not asked yet"
    loads = [job for job in histories.jobs if job.subject == "load" and job.model == request.model]
    load = loads[-1] if loads else None
    if request.ended is not None:
        tokens = request.details.get("completion_tokens")
        if request.cause == "length":
            return f"cut off after {tokens} tokens, as asked"
        return (request.outcome or "ended") + (f", {tokens} tokens" if tokens else "")
    if request.pausing:
        return f"paused for {seconds(now - request.pauses[-1].start)}"
    if request.first_token is not None:
        return "generating"
    if request.started is not None:
        return "reading its prompt"
    if load is not None and load.started is not None and load.ended is None:
        return "its model is being loaded"
    if load is not None and load.deferred is not None and load.started is None:
        return f"its load is deferred for {seconds(now - load.deferred)}"
    return "waiting"


class _Tail:
    """The last lines of a text that is still growing, in a fixed height."""

    def __init__(self, text: str, lines: int) -> None:
        self._text = text
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wrapped = Text(self._text.lstrip()).wrap(console, options.max_width)
        shown = list(wrapped)[-self._lines :]
        yield from shown
        for _ in range(self._lines - len(shown)):
            yield Text("")
