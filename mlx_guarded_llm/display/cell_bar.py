"""A progress bar in the output of a notebook's cell."""

from __future__ import annotations

import time
import uuid
from typing import Any

from ..record import phrases
from . import html

_PAUSE = 0.1  # seconds between two drawings
_LOADING = "#3f83f0"  # the colour of loads in timelines
_TRACK = "#80808040"


class CellBar:
    """A line of HTML that is drawn anew in place, so it needs no widgets.

    A saved notebook keeps what was drawn last, and shows it to whoever opens the file. The names
    are those that `ProgressBars` uses of a bar of tqdm.

    Args:
        desc: what is done.
        total: how much there is; None if that is unknown.
        initial: how much is done already.
        unit: of both: "B" for bytes, or a word with a space before it.
        delay: seconds before it appears.

    Attributes:
        n: how much is done.
        leave: whether it stays when it is closed.
    """

    def __init__(
        self, *, desc: str, total: int | None, initial: int, unit: str, delay: float, **_: Any
    ) -> None:
        self.n = initial
        self.leave = True
        self._desc = desc
        self._total = total
        self._initial = initial
        self._unit = unit
        self._delay = delay
        self._id = uuid.uuid4().hex
        self._begun = time.monotonic()
        self._drawn: float | None = None  # when; None before it has appeared

    @property
    def format_dict(self) -> dict[str, float]:
        """The seconds since it was made, as "elapsed"."""
        return {"elapsed": time.monotonic() - self._begun}

    def update(self, more: int) -> None:
        """`more` has been done."""
        self.n += more
        now = time.monotonic()
        if now >= self._begun + self._delay and now >= (self._drawn or 0.0) + _PAUSE:
            self._draw(self._markup(), self._text())

    def close(self) -> None:
        """Draw it for the last time, or take it away."""
        if self._drawn is not None:
            self._draw(*((self._markup(over=True), self._text()) if self.leave else ("", "")))

    def _draw(self, markup: str, text: str) -> None:
        from IPython.display import display

        data = {"text/html": markup, "text/plain": text}
        display(data, raw=True, display_id=self._id, update=self._drawn is not None)  # type: ignore[no-untyped-call, unused-ignore]
        self._drawn = time.monotonic()

    def _text(self) -> str:
        share = f" {self.n / self._total:.0%}" if self._total else ""
        return f"{self._desc}{share}"

    def _markup(self, *, over: bool = False) -> str:
        if over and self.n == self._total:
            facts = f"{self._amount(self.n)} in {phrases.seconds(self.format_dict['elapsed'])}"
            return html.small(f"{html.text(self._desc)} · {facts}")
        bar = ""
        if self._total:
            bar = (
                f'<div style="flex:none;width:12em;height:.7em;border-radius:.35em;'
                f'overflow:hidden;background-color:{_TRACK}">'
                f'<div style="width:{self.n / self._total:.1%};height:100%;'
                f'background-color:{_LOADING}"></div></div>'
            )
        return (
            '<div style="display:flex;flex-wrap:wrap;align-items:center;gap:.8em;font-size:85%">'
            f"<div>{html.text(self._desc)}</div>{bar}<div>{self._facts(over)}</div></div>"
        )

    def _facts(self, over: bool) -> str:
        facts = [self._amount(self.n)]
        if self._total:
            facts[0] += f" of {self._amount(self._total)}"
        done, elapsed = self.n - self._initial, self.format_dict["elapsed"]
        if over:
            facts.append("stopped")
        elif self._total and done > 0:
            left = elapsed * (self._total - self.n) / done
            facts.append(f"{phrases.about(left)} left")
        return html.text(" · ".join(facts))

    def _amount(self, number: int) -> str:
        return phrases.size(number) if self._unit == "B" else f"{number:,}{self._unit}"
