"""Pieces of HTML that look right on light and on dark pages.

They need no script or style sheet: text takes the colour of the page, and warnings have a mid
tone.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from ..record import phrases

_ALARM = "#e05252"  # the colour of failures in timelines
_CELL = "padding:.2em .9em .2em 0;border:0"
_TAG = re.compile(r"<[^>]*>")
_WHOLE = 50  # letters; a cell that has no more is not broken into lines


def text(value: object) -> str:
    """`value` as one line of text."""
    return html.escape(phrases.one_line(str(value)))


def alarm(markup: str) -> str:
    """A warning that must not be overlooked."""
    return f'<b style="color:{_ALARM}">{markup}</b>'


def small(markup: str) -> str:
    """A line in small letters."""
    return f'<div style="font-size:85%;opacity:.75;margin-top:.4em">{markup}</div>'


def folded(title: str, markup: str, *, opened: bool = False) -> str:
    """A block that is shown when its title is clicked."""
    state = " open" if opened else ""
    return (
        f'<details{state} style="margin:.3em 0"><summary style="cursor:pointer;opacity:.75">'
        f"{title}</summary>{markup}</details>"
    )


def verbatim(value: str) -> str:
    """Text with its line breaks, as it was written."""
    return (
        f'<div style="white-space:pre-wrap;opacity:.75;margin:.3em 1em">{html.escape(value)}</div>'
    )


def markdown(value: str) -> str:
    """A model's text with its Markdown rendered.

    HTML in it is shown as text and no picture is fetched, because an answer may quote a
    document that somebody else wrote.
    """
    from markdown_it import MarkdownIt

    reader = MarkdownIt("js-default", {"breaks": True}).disable("image")
    return str(reader.render(value))


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()
) -> str:
    """A table, which scrolls where it is too long or too wide for the page.

    Args:
        head: names of the columns, plain text. An empty column is left out.
        rows: cells of each row, HTML.
        numbers: indexes of the columns of numbers, which are aligned to the right.
    """
    shown = [column for column in range(len(head)) if any(cells[column] for cells in rows)]

    def row(tag: str, cells: Sequence[str]) -> str:
        looks = (_look(cells[column], number=column in numbers) for column in shown)
        return "".join(
            f'<{tag} style="{look}">{cells[column]}</{tag}>'
            for column, look in zip(shown, looks, strict=True)
        )

    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    heads = row("th", [text(name) for name in head])
    return (
        '<div style="max-height:32em;overflow:auto"><table style="border:0;margin:0">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _look(cell: str, *, number: bool) -> str:
    """The style of a cell."""
    side = "right" if number else "left"
    letters = len(html.unescape(_TAG.sub("", cell)))
    return f"{_CELL};text-align:{side}" + (";white-space:nowrap" if letters <= _WHOLE else "")
