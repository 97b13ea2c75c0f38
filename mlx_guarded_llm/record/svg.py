"""A timeline as an inline SVG picture, for notebooks and web pages."""

from __future__ import annotations

import html
from collections.abc import Iterator

from . import words
from .axis import DEATHS, DRAWN, STILL, WAITS, states_in, tick_label, ticks
from .spans import Span
from .timeline import Mark, Timeline

_WIDTH = 960
_LANE = 22  # height of a lane, the bar and the gap under it
_BAR = 16
_ROW_GAP = 10
_LETTER = 6.7  # width of a letter at font size 12, a little on the wide side
_BOLD = 7.8  # likewise of a bold one
_MOST_NAME = 32  # letters of a model's name; a longer one is cut at its front
_SMALLEST = 1.5  # width at which a load or a generation can still be seen

# Mid tones, which stand out from white and from black; text takes the page's colour.
_COLOURS = {
    "waiting": "#9aa0a6",
    "deferred": "#e3a32b",
    "prefill": "#7cc7a2",
    "decode": "#2e9f6b",
    "paused": "#e05252",
    "recovering": "#d6409f",
    "unloading": "#9a6dd7",
    "running": "#23a6b5",
    "loading": "#3f83f0",
}
_SIGNS = {"failed": "#e05252", "cancelled": "#e3a32b", "interrupted": "#d6409f"}


def render_svg(timeline: Timeline) -> str:
    """The timeline as an HTML fragment: one `svg` element without scripts or styles."""
    if not timeline.rows:
        return "<p>Nothing was recorded.</p>"
    return "".join(_Picture(timeline).parts())


class _Picture:
    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.names = {row.model: _short(row.model) for row in timeline.rows}
        self.left = 16 + _BOLD * max(map(len, self.names.values()))
        self.plot = _WIDTH - self.left - 24
        self.tops: dict[str, float] = {}
        y = 10.0
        for row in timeline.rows:
            self.tops[row.model] = y
            y += row.lanes * _LANE + _ROW_GAP
        self.bottom = y

    def x(self, time: float) -> float:
        length = self.timeline.end - self.timeline.start
        return self.left + (self.plot * (time - self.timeline.start) / length if length else 0)

    def parts(self) -> Iterator[str]:
        height = self.bottom + 52
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
            f'width="100%" style="max-width:{_WIDTH}px" role="img" '
            f'aria-label="Timeline of {len(self.names)} models" '
            'font-family="system-ui, DejaVu Sans, sans-serif" font-size="12" '
            'fill="currentColor">'
        )
        yield from self.axis()
        for row in self.timeline.rows:
            top = self.tops[row.model]
            yield (
                f'<text x="{self.left - 10:.1f}" y="{top + 12.5:.1f}" text-anchor="end" '
                f'font-weight="600">{escape(self.names[row.model])}'
                f"<title>{escape(row.model)}</title></text>"
            )
            yield from self.bars(row.spans, top)
        for mark in self.timeline.marks:
            yield self.mark(mark)
        yield from self.legend()
        yield "</svg>"

    def axis(self) -> Iterator[str]:
        for tick in ticks(self.timeline.end - self.timeline.start, 9):
            x = self.x(self.timeline.start + tick)
            yield (
                f'<path d="M{x:.1f} 4V{self.bottom:.1f}" stroke="currentColor" '
                'stroke-opacity=".15"/>'
                f'<text x="{x:.1f}" y="{self.bottom + 14:.1f}" text-anchor="middle" '
                f'font-size="11" fill-opacity=".7">{tick_label(tick)}</text>'
            )

    def bars(self, spans: tuple[Span, ...], top: float) -> Iterator[str]:
        reached: dict[tuple[int, str], float] = {}
        named: set[tuple[int, str]] = set()
        labels = []
        for span in sorted(spans, key=lambda span: DRAWN.index(span.state)):
            x, end = self.x(span.start), self.x(span.end)
            if end - x < _SMALLEST:
                # Thousands of short spans must not make a picture of megabytes.
                if span.state in WAITS or x < reached.get((span.lane, span.state), 0):
                    continue
                end = x + _SMALLEST
            reached[span.lane, span.state] = end
            y = top + span.lane * _LANE
            yield self.bar(span, x, end, y)
            name = (span.lane, span.label)
            room = _LETTER * len(span.label) + 8
            if span.state == "decode" and end - x > room and name not in named:
                named.add(name)
                labels.append(
                    f'<text x="{x + 5:.1f}" y="{y + 12:.1f}" font-size="11" fill="#fff" '
                    f'pointer-events="none">{escape(span.label)}</text>'
                )
        yield from labels

    def bar(self, span: Span, x: float, end: float, y: float) -> str:
        colour = _COLOURS[span.state]
        height, drop = (_BAR, 0.0) if span.state not in WAITS else (_BAR / 2, _BAR / 4)
        look = f'fill="{colour}"'
        if span.state in STILL:
            # Hollow: nothing steps here.
            look = f'fill="{colour}" fill-opacity=".15" stroke="{colour}" stroke-dasharray="3 2"'
        return (
            f'<rect x="{x:.1f}" y="{y + drop:.1f}" width="{end - x:.1f}" height="{height:g}" '
            f'rx="2" {look}><title>{escape(_told(span, self.timeline.start))}</title></rect>'
        )

    def mark(self, mark: Mark) -> str:
        x = self.x(mark.time)
        title = f"<title>{escape(f'{mark.label} {mark.kind}: {mark.cause}')}</title>"
        if mark.row is None:
            if mark.kind not in DEATHS:
                return ""
            return (
                f'<path d="M{x:.1f} 4V{self.bottom:.1f}" stroke="{_SIGNS["failed"]}" '
                f'stroke-width="2">{title}</path>'
            )
        y = self.tops[mark.row] + mark.lane * _LANE + _BAR / 2
        return _sign(mark.kind, x, y, title)

    def legend(self) -> Iterator[str]:
        states = states_in(self.timeline.rows)
        kinds = sorted({mark.kind for mark in self.timeline.marks} & _SIGNS.keys())
        length = sum(36 + _LETTER * len(name) for name in [*states, *kinds])
        # Under the plot if it has the room, else further to the left.
        x, y = min(self.left, _WIDTH - length), self.bottom + 36
        for state in states:
            height, drop = (10, 0) if state not in WAITS else (6, 2)
            look = f'fill="{_COLOURS[state]}"'
            if state in STILL:
                look += f' fill-opacity=".15" stroke="{_COLOURS[state]}" stroke-dasharray="3 2"'
            yield (
                f'<rect x="{x:.1f}" y="{y - 9 + drop:.1f}" width="14" height="{height}" '
                f'rx="2" {look}/>'
                f'<text x="{x + 19:.1f}" y="{y:.1f}">{state}</text>'
            )
            x += 36 + _LETTER * len(state)
        for kind in kinds:
            yield _sign(kind, x + 6, y - 4, "")
            yield f'<text x="{x + 19:.1f}" y="{y:.1f}">{kind}</text>'
            x += 36 + _LETTER * len(kind)


def _sign(kind: str, x: float, y: float, title: str) -> str:
    """A cross for a failure, a ring for a cancel, a bolt for what is tried again."""
    name = "path"
    if kind == "failed":
        shape = f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" '
    elif kind == "interrupted":
        shape = f'<path d="M{x + 2:.1f} {y - 6:.1f}l-5 6h6l-5 6" '
    else:
        name, shape = "circle", f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" '
    return f'{shape}fill="none" stroke="{_SIGNS[kind]}" stroke-width="2.5">{title}</{name}>'


def _told(span: Span, origin: float) -> str:
    """What a tooltip says of a span."""
    told = (
        f"{span.label}: {span.state} for {words.seconds(span.seconds)}, "
        f"from {words.seconds(span.start - origin)} to {words.seconds(span.end - origin)}"
    )
    if span.cause:
        told += f", {span.cause}" if span.state in WAITS else f": {span.cause}"
    return told + (" (unfinished)" if span.unfinished else "")


def escape(text: str) -> str:
    """`text` as it may stand in the picture; control characters would break it."""
    return html.escape(words.one_line(text))


def _short(name: str) -> str:
    return name if len(name) <= _MOST_NAME else "…" + name[1 - _MOST_NAME :]
