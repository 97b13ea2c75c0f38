"""The status line on an emulated screen: the answer stays as it is, whatever is drawn."""

from __future__ import annotations

import io

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_guarded_llm.cli import console
from mlx_guarded_llm.cli.status_line import StatusLine, laid_out, open_line
from mlx_guarded_llm.models import Progress
from tests._terminal import Emulated

ROWS = 12
LETTERS = [*"ab c.\n日本é\u0301\u202e", "word ", "日本語日本語", "\x1b[2J"]
PIECES = st.lists(st.sampled_from(LETTERS), max_size=30).map("".join)


class Still:
    """Facts that do not change."""

    def __init__(self, text: str) -> None:
        self.text = text

    def update(self, progress: Progress) -> None:
        self.text = progress.stage

    def look(self) -> str:
        return self.text


class Screen(io.StringIO):
    """A terminal that is looked at after every write."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.screen = Emulated(width, ROWS)
        self.screen.set_mode(pyte.modes.LNM)  # as the terminal's driver does with \n
        self._stream = pyte.Stream(self.screen)

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._stream.feed(text)
        return len(text)

    @property
    def place(self) -> tuple[int, int]:
        return self.screen.cursor.y, self.screen.cursor.x


@given(
    pieces=st.lists(PIECES, max_size=12),
    width=st.integers(4, 24),
    status=st.text(st.sampled_from([*"model: 1", "日", "\n", "\x1b"]), min_size=1, max_size=40),
)
def test_the_answer_stays_as_it_is(pieces: list[str], width: int, status: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        plain, drawn = Screen(width), Screen(width)
        patch.setattr("sys.stdout", drawn)
        line = StatusLine(Still(status))
        line._text = status
        for piece in pieces:
            plain.write(console.harmless(piece))
            line.write(piece)
            top = drawn.place[0]
            moved = drawn.place[0] - plain.place[0]
            assert drawn.place[1] == plain.place[1]
            # The row below the cursor may have pushed the others up by one.
            assert moved in (0, -1)
            above = plain.screen.display[-moved : plain.place[0] + 1]
            assert drawn.screen.display[: top + 1] == above
            below = [row.strip() for row in drawn.screen.display[top + 1 :]]
            assert not any(below[1:])
        line.close()
        top = drawn.place[0]
        assert not "".join(drawn.screen.display[top + 1 :]).strip()
        assert line._erased() == ""


def test_it_stands_below_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr("sys.stdout", screen := Screen(20))
    line = StatusLine(Still(""))
    line._text = "日本 12.5 tokens/s, 40 tokens"
    line.write("Paris\nis it")
    rows = [row.rstrip() for row in screen.screen.display[:4]]
    assert rows[0] == "Paris" and rows[1] == "is it" and rows[3] == ""
    assert rows[2].endswith("…") and "12.5 tok" in rows[2]
    line.write(".")
    assert screen.screen.display[1].rstrip() == "is it."
    line.close()
    assert screen.screen.display[2].strip() == ""
    line.write("\n")
    assert screen.screen.display[2].strip() == "", "nothing is drawn after its end"


@pytest.mark.parametrize(
    ("column", "text", "shown", "after"),
    [
        (0, "abc", "abc", 3),
        (0, "a" * 10, "a" * 10, 10),
        (10, "b", "b", 1),
        (9, "日", "日", 2),
        (3, "\tb", "     b", 9),
        (8, "\t", "  ", 10),
        (10, "\t", "", 10),
        (3, "\n", "\n", 0),
        (3, "e\u0301", "e\u0301", 4),
    ],
)
def test_where_the_cursor_is(column: int, text: str, shown: str, after: int) -> None:
    assert laid_out(text, column, 10) == (shown, after)


def test_only_a_terminal_that_moves_its_cursor_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert not isinstance(open_line("tiny", Still("")), StatusLine)
    monkeypatch.setattr("sys.stdout", Screen(20))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(console.out(), "_force_terminal", True, raising=False)
    assert not isinstance(open_line("tiny", Still("")), StatusLine)
