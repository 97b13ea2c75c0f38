"""A timeline as an SVG picture: for a notebook, inline in a web page, or a file of its own."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import phrases
from .chart import DEATHS, DRAWN, STILL, WAITS, states_in, tick_label, ticks
from .spans import Span
from .timeline import Mark, Timeline

WIDTH = 960
_LANE = 22  # height of a lane, the bar and the gap under it
_BAR = 16
_ROW_GAP = 10
_LETTER = 6.7  # width of a letter at font size 12, slightly overestimated
_BOLD = 7.8  # the same for a bold letter
_MOST_NAME = 32  # letters of a model's name; a longer one loses its front
_NAMES = 0.3  # share of the width that names may take
_TICK = 45  # width that the label of a tick needs
_MOST_LANES = 12  # of a row, in a live view; a page must not jump when a crowd comes
_SMALLEST = 1.5  # width at which a load or a generation can still be seen

# Mid tones, which stand out on white and on black. Text takes the colour of the page.
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
_PAGE = (
    "svg{color:#1f2328}.page{fill:#fff}@media(prefers-color-scheme:dark)"
    "{svg{color:#e6edf3}.page{fill:#0d1117}}"
)
_ON_ANY_PAGE = "#767676"  # has a contrast of more than 4 with white, and with Jupyter's black
_SIGNS = {"failed": "#e05252", "cancelled": "#e3a32b", "interrupted": "#d6409f"}


def render_html(timeline: Timeline, *, width: int = WIDTH) -> str:
    """The timeline in the output of a notebook's cell.

    The `object` has tooltips. Jupyter takes it out of a notebook that somebody else ran, and so
    do most pages that show notebooks. What they leave is the `img` in it, without tooltips.
    Neither has the colours of the page around it, so their text has one for both kinds.
    """
    if not timeline.rows:
        return "<p>Nothing was recorded.</p>"
    picture = render_svg(timeline, width=width, colour=_ON_ANY_PAGE)
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()}"
    # A document of another colour scheme than its page's would have a background.
    look = f'style="width:100%;max-width:{width}px;color-scheme:light"'
    return (
        f'<object type="image/svg+xml" data="{source}" {look}>'
        f'<img src="{source}" alt="{_label(timeline)}" {look}/></object>'
    )


def render_svg(
    timeline: Timeline, *, width: int = WIDTH, live: bool = False, colour: str | None = None
) -> str:
    """The timeline as one `svg` element without scripts or style sheets.

    Args:
        timeline: what to draw.
        width: of the picture.
        live: it is of the last minutes. Times count back from its end, a crowd is cut off,
            and whatever belongs to a request says to which, in `data-request`.
        colour: of the text; None is that of the page that has the element.
    """
    picture = _Picture(timeline, width, live)
    drawn = "".join(picture.parts())  # which knows how high it is
    size = f'width="{width}" height="{picture.height:.0f}"' if live else ""
    colours = "" if colour is None else f' color="{colour}"'
    opening = _opening(width, picture.height, f"{size}{colours}", _label(timeline))
    return f"{opening}{drawn}</svg>"


def write_svg(timelines: Mapping[str, Timeline], path: str | Path, *, width: int = WIDTH) -> Path:
    """Write a picture of its own: the timelines one below another, each under its title.

    It has a background, light or dark as the reader's system is, so any page can show it.
    """
    parts, y = [], 8.0
    for title, timeline in timelines.items():
        picture = _Picture(timeline, width, False)
        drawn = "".join(picture.parts())
        parts.append(
            f'<text x="16" y="{y + 20:.0f}" font-size="14" font-weight="600">{escape(title)}</text>'
            f'<g transform="translate(0,{y + 28:.0f})">{drawn}</g>'
        )
        y += 28 + picture.height + 8
    size = f'width="{width}" height="{y:.0f}"'
    path = Path(path)
    path.write_text(
        f"{_opening(width, y, size, '; '.join(timelines))}<style>{_PAGE}</style>"
        f'<rect class="page" width="{width}" height="{y:.0f}" rx="8"/>{"".join(parts)}</svg>\n',
        encoding="utf-8",
    )
    return path


def _label(timeline: Timeline) -> str:
    return f"Timeline of {phrases.counted(len(timeline.rows), 'model')}"


def _opening(width: int, height: float, size: str, label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" {size} '
        f'role="img" aria-label="{escape(label)}" '
        'font-family="system-ui, DejaVu Sans, sans-serif" font-size="12" fill="currentColor">'
    )


class _Picture:
    def __init__(self, timeline: Timeline, width: int, live: bool) -> None:
        self.timeline = timeline
        self.width = width
        self.live = live
        most = min(_MOST_NAME, max(6, int(width * _NAMES / _BOLD)))
        self.names = {row.model: _short(row.model, most) for row in timeline.rows}
        self.left = 16 + _BOLD * max(map(len, self.names.values()), default=0)
        self.plot = width - self.left - 24
        self.lanes = {row.model: row.lanes for row in timeline.rows}
        self.tops: dict[str, float] = {}
        y = 10.0
        for row in timeline.rows:
            self.tops[row.model] = y
            if live and row.lanes > _MOST_LANES:
                self.lanes[row.model] = _MOST_LANES
                y += _LANE  # for how many more there are
            y += self.lanes[row.model] * _LANE + _ROW_GAP
        self.bottom = y
        self.height = 0.0  # known with the legend

    def x(self, time: float) -> float:
        length = self.timeline.end - self.timeline.start
        return self.left + (self.plot * (time - self.timeline.start) / length if length else 0)

    def parts(self) -> Iterator[str]:
        legend = list(self.legend())  # which sets the height
        yield from self.axis()
        for row in self.timeline.rows:
            top = self.tops[row.model]
            yield (
                f'<text x="{self.left - 10:.1f}" y="{top + 12.5:.1f}" text-anchor="end" '
                f'font-weight="600">{escape(self.names[row.model])}'
                f"<title>{escape(row.model)}</title></text>"
            )
            lanes = self.lanes[row.model]
            yield from self.bars(tuple(s for s in row.spans if s.lane < lanes), top)
            if lanes < row.lanes:
                yield (
                    f'<text x="{self.left:.1f}" y="{top + lanes * _LANE + 12.5:.1f}" '
                    f'fill-opacity=".7">and {row.lanes - lanes} more at once</text>'
                )
        for mark in self.timeline.marks:
            yield self.mark(mark)
        yield from legend

    def axis(self) -> Iterator[str]:
        start, end = self.timeline.start, self.timeline.end
        for tick in ticks(end - start, max(2, min(9, int(self.plot / _TICK)))):
            x = self.x(end - tick if self.live else start + tick)
            label = tick_label(tick)
            if self.live:
                label = f"\N{MINUS SIGN}{label}" if tick else "now"
            yield (
                f'<path d="M{x:.1f} 4V{self.bottom:.1f}" stroke="currentColor" '
                'stroke-opacity=".15"/>'
                f'<text x="{x:.1f}" y="{self.bottom + 14:.1f}" text-anchor="middle" '
                f'font-size="11" fill-opacity=".7">{label}</text>'
            )

    def bars(self, spans: tuple[Span, ...], top: float) -> Iterator[str]:
        reached: dict[tuple[int, str], float] = {}
        named: set[tuple[int, str]] = set()
        labels = []
        for span in sorted(spans, key=lambda span: DRAWN.index(span.state)):
            x, end = self.x(span.start), self.x(span.end)
            if end - x < _SMALLEST:
                # Without this, thousands of short spans would make a picture of megabytes.
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
            # Drawn hollow, because nothing is generated in it.
            look = f'fill="{colour}" fill-opacity=".15" stroke="{colour}" stroke-dasharray="3 2"'
        return (
            f'<rect x="{x:.1f}" y="{y + drop:.1f}" width="{end - x:.1f}" height="{height:g}" '
            f'rx="2" {look}{self.owner(span.request_id)}><title>'
            f"{escape(_tooltip(span, self.timeline, live=self.live))}</title></rect>"
        )

    def owner(self, request_id: str | None) -> str:
        """The attribute that names the request of a bar."""
        return f' data-request="{escape(request_id)}"' if self.live and request_id else ""

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
        if mark.lane >= self.lanes[mark.row]:
            return ""
        y = self.tops[mark.row] + mark.lane * _LANE + _BAR / 2
        return _sign(mark.kind, x, y, title)

    def legend(self) -> Iterator[str]:
        states = states_in(self.timeline.rows)
        kinds = sorted({mark.kind for mark in self.timeline.marks} & _SIGNS.keys())
        length = sum(36 + _LETTER * len(name) for name in [*states, *kinds])
        # Under the plot if there is room, else further to the left, else in several lines.
        left = max(8.0, min(self.left, self.width - length))
        x, y = left, self.bottom + 36
        for name in [*states, *kinds]:
            if x > left and x + 19 + _LETTER * len(name) > self.width:
                x, y = left, y + 20
            if name in kinds:
                yield _sign(name, x + 6, y - 4, "")
            else:
                yield _swatch(name, x, y)
            yield f'<text x="{x + 19:.1f}" y="{y:.1f}">{name}</text>'
            x += 36 + _LETTER * len(name)
        self.height = y + 16


def _swatch(state: str, x: float, y: float) -> str:
    """What a state looks like."""
    height, drop = (10, 0) if state not in WAITS else (6, 2)
    look = f'fill="{_COLOURS[state]}"'
    if state in STILL:
        look += f' fill-opacity=".15" stroke="{_COLOURS[state]}" stroke-dasharray="3 2"'
    return f'<rect x="{x:.1f}" y="{y - 9 + drop:.1f}" width="14" height="{height}" rx="2" {look}/>'


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


def _tooltip(span: Span, timeline: Timeline, *, live: bool) -> str:
    """The tooltip of a span."""
    text = f"{span.label}: {span.state} for {phrases.seconds(span.seconds)}, "
    if live:
        text += f"begun {phrases.seconds(timeline.end - span.start)} ago"
    else:
        start, end = span.start - timeline.start, span.end - timeline.start
        text += f"from {phrases.seconds(start)} to {phrases.seconds(end)}"
    if span.cause:
        text += f", {span.cause}" if span.state in WAITS else f": {span.cause}"
    return text + (" (unfinished)" if span.unfinished else "")


def escape(text: str) -> str:
    """`text` escaped for the picture, without control characters, which would break it."""
    return html.escape(phrases.one_line(text))


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]
