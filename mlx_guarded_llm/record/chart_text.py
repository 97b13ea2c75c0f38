"""A timeline as a bar chart for the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from . import phrases
from .chart import DEATHS, DRAWN, WAITS, states_in, tick_label, ticks
from .spans import Span
from .timeline import Mark, Row, Timeline

_LONGEST_NAME = 32  # a longer one loses its front, as the ends of names tell models apart
_MOST_LANES = 8
_GLYPHS = {  # they can be told apart without colours too
    "waiting": ("·", "bright_black"),
    "deferred": ("░", "yellow"),
    "prefill": ("▒", "green"),
    "decode": ("█", "green"),
    "paused": ("╌", "red"),
    "recovering": ("~", "bold red"),
    "unloading": ("▞", "magenta"),
    "running": ("≡", "cyan"),
    "loading": ("▓", "blue"),
}
_SIGNS = {
    "failed": ("✗", "bold red"),
    "cancelled": ("○", "bold yellow"),
    "interrupted": ("↯", "bold red"),
}
_IN_WORDS = {  # sentences under the chart
    "engine.died": "died",
    "engine.failed": "failed",
    "model.quarantined": "was quarantined",
    "model.forgiven": "was forgiven",
}


def render_text(timeline: Timeline, width: int | None = None) -> RenderableType:
    """A bar chart of the timeline: a row for each model, a time axis and a legend.

    Args:
        timeline: what to draw.
        width: columns to use; None takes what the console has.

    Returns:
        Something that `rich` prints.
    """
    return _Chart(timeline, width)


def plain_text(timeline: Timeline, width: int = 100) -> str:
    """`render_text` without colours, as one string."""
    page = io.StringIO()
    # Without force_jupyter rich would display it in a notebook by itself.
    Console(file=page, width=width, color_system=None, force_jupyter=False).print(
        render_text(timeline)
    )
    return page.getvalue()


@dataclass(frozen=True)
class _Chart:
    timeline: Timeline
    width: int | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(self.width or options.max_width, options.max_width)
        for line in _lines(self.timeline, width):
            line.truncate(width, overflow="ellipsis")
            yield line


def _lines(timeline: Timeline, width: int) -> Iterator[Text]:
    if not timeline.rows:
        yield Text("Nothing was recorded.", style="dim")
        return
    most = min(_LONGEST_NAME, width // 3)
    names = {row.model: _short(phrases.one_line(row.model), most) for row in timeline.rows}
    margin = max(map(len, names.values())) + 1
    scale = _Scale(timeline.start, timeline.end, max(width - margin - 1, 10))
    for row in timeline.rows:
        shown = min(row.lanes, _MOST_LANES)
        for lane in range(shown):
            name = names[row.model] if lane == 0 else ""
            yield Text.assemble(
                (name.rjust(margin - 1) + " ", "bold"), *_bar(row, lane, timeline.marks, scale)
            )
        if row.lanes > shown:
            yield Text(" " * margin + f"and {row.lanes - shown} more at once", style="dim")
    yield from _axis(scale, margin)
    yield from _legend(timeline, margin, width)
    for mark in timeline.marks:
        if mark.kind in _IN_WORDS:
            at = phrases.seconds(mark.time - timeline.start)
            who = "the engine" if mark.label == "engine" else mark.label
            what = phrases.one_line(
                f"{who} {_IN_WORDS[mark.kind]} at {at}{phrases.because(mark.cause)}"
            )
            yield Text(" " * margin + what, style="red" if mark.kind in DEATHS else "")


@dataclass(frozen=True)
class _Scale:
    """Times to columns."""

    start: float
    end: float
    columns: int

    def column(self, time: float) -> int:
        if self.end <= self.start:
            return 0
        return round((time - self.start) / (self.end - self.start) * self.columns)

    def cells(self, span: Span) -> range:
        """The columns of a span: at least one, except for a wait."""
        first, end = self.column(span.start), self.column(span.end)
        if first == end and span.state not in WAITS:
            first = min(first, self.columns - 1)
            end = first + 1
        return range(first, end)


def _bar(row: Row, lane: int, marks: tuple[Mark, ...], scale: _Scale) -> Iterator[tuple[str, str]]:
    """One lane as (glyphs, style) runs: spans, the names in them, and signs of failures."""
    glyphs, styles = [" "] * scale.columns, [""] * scale.columns
    spans = [span for span in row.spans if span.lane == lane]
    for span in sorted(spans, key=lambda span: DRAWN.index(span.state)):
        for cell in scale.cells(span):
            glyphs[cell], styles[cell] = _GLYPHS[span.state]
    named = set()
    for span in spans:
        cells, label = scale.cells(span), phrases.one_line(span.label)
        if span.state == "decode" and span.label not in named and len(cells) > len(label) + 2:
            named.add(span.label)
            free = cells[1 : len(label) + 1]
            if all(glyphs[cell] == _GLYPHS["decode"][0] for cell in free):
                for cell, letter in zip(free, label, strict=True):
                    glyphs[cell], styles[cell] = letter, "bold black on green"
    for mark in marks:
        if (mark.row, mark.lane) == (row.model, lane) and mark.kind in _SIGNS:
            cell = min(scale.column(mark.time), scale.columns - 1)
            glyphs[cell], styles[cell] = _SIGNS[mark.kind]
    for style, run in groupby(zip(styles, glyphs, strict=True), key=itemgetter(0)):
        yield "".join(glyph for _, glyph in run), style


def _axis(scale: _Scale, margin: int) -> Iterator[Text]:
    """A ruler with a mark at each tick, and the times under it."""
    ruler, labels = ["─"] * (scale.columns + 1), ""
    for tick in ticks(scale.end - scale.start, max(2, scale.columns // 9)):
        column, label = scale.column(scale.start + tick), tick_label(tick)
        ruler[column] = "┬" if column else "┌"
        at = column - len(label) // 2 + margin
        # A label that would stick out of the chart is moved inwards.
        at = min(max(at, margin), margin + scale.columns + 1 - len(label))
        labels = labels.ljust(at) + label
    yield Text(" " * margin + "".join(ruler), style="dim")
    yield Text(labels, style="dim")


def _legend(timeline: Timeline, margin: int, width: int) -> Iterator[Text]:
    entries = [(_GLYPHS[state], 2, state) for state in states_in(timeline.rows)]
    failures = {mark.kind for mark in timeline.marks} & _SIGNS.keys()
    entries += [(_SIGNS[kind], 1, kind) for kind in sorted(failures)]
    text = Text(" " * margin)
    for (glyph, style), count, name in entries:
        entry = Text.assemble((glyph * count, style), f" {name}")
        if len(text) > margin and len(text) + 2 + len(entry) > width:
            yield text
            text = Text(" " * margin)
        text.append("  " if len(text) > margin else "").append_text(entry)
    yield text


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]
