from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mlx_guarded_llm import Progress, ProgressBars
from mlx_guarded_llm.display import cell_bar

GB = 1_000_000_000


class Cell:
    """The output of a cell, as a notebook's front end keeps it."""

    def __init__(self) -> None:
        self.outputs: dict[str, dict[str, str]] = {}
        self.drawings = 0

    def display(self, data: dict[str, str], *, raw: bool, display_id: str, update: bool) -> None:
        assert raw and update == (display_id in self.outputs)
        self.outputs[display_id] = data
        self.drawings += 1

    @property
    def pages(self) -> list[str]:
        return [data["text/html"] for data in self.outputs.values()]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    time = [100.0]
    monkeypatch.setattr(cell_bar, "time", SimpleNamespace(monotonic=lambda: time[0]))
    return time


@pytest.fixture
def cell(now: list[float], monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A notebook without ipywidgets."""
    shown = Cell()
    ipython: Any = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    ipython.display = SimpleNamespace(display=shown.display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    return shown


def load(done: int, total: int | None = 10 * GB, **more: Any) -> Progress:
    return Progress("load", done, total, model="llama-70b", **more)


def test_one_line_is_drawn_anew(cell: Cell, now: list[float]) -> None:
    show = ProgressBars()
    for done in range(1, 6):
        show(load(done * GB))
        now[0] += 1
    (page,) = cell.pages
    assert "load llama-70b" in page and "5 GB of 10 GB" in page and "width:50.0%" in page
    assert "about 5 s left" in page
    (data,) = cell.outputs.values()
    assert data["text/plain"] == "load llama-70b 50%"


def test_its_last_drawing_says_what_was_done(cell: Cell, now: list[float]) -> None:
    show = ProgressBars()
    show(load(GB))
    now[0] += 7
    show(load(9 * GB))
    show(load(10 * GB))
    (page,) = cell.pages
    assert "load llama-70b · 10 GB in 7.00 s" in page


def test_what_stopped_half_way_says_so(cell: Cell, now: list[float]) -> None:
    show = ProgressBars()
    show(load(GB))
    now[0] += 7
    show(load(4 * GB))
    show(load(4 * GB, over=True))
    (page,) = cell.pages
    assert "4 GB of 10 GB · stopped" in page


def test_short_work_draws_nothing_and_a_prefill_leaves_nothing(
    cell: Cell, now: list[float]
) -> None:
    show = ProgressBars()
    show(load(GB))
    show(load(10 * GB))
    assert cell.outputs == {}
    for done in (100, 2000, 4000):
        show(Progress("prefill", done, 4000, model="phi3", request_id="r"))
        now[0] += 5
    assert (cell.drawings, cell.pages) == (3, [""])


def test_it_is_not_drawn_at_each_token(cell: Cell, now: list[float]) -> None:
    show = ProgressBars(delay=0)
    for done in range(1, 1001):
        show(Progress("prefill", done, 4000, model="phi3", request_id="r"))
        now[0] += 0.01
    assert 90 <= cell.drawings <= 101
    assert "tokens" in cell.pages[0]


def test_without_a_total_it_has_no_bar_and_a_name_is_no_markup(
    cell: Cell, now: list[float]
) -> None:
    show = ProgressBars(delay=0)
    show(Progress("import", 5, None, model="<b>"))
    assert "import &lt;b&gt;" in cell.pages[0] and "width:" not in cell.pages[0]
