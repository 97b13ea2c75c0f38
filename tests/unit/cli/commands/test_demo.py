"""The demo's parts on records written by hand; the demo itself is in tests/e2e."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mlx_guarded_llm.cli import record_summary
from mlx_guarded_llm.cli.demo import naive as demo_naive
from mlx_guarded_llm.cli.demo.boards import LineBoard, PanelBoard, state
from mlx_guarded_llm.cli.demo.scene import Part
from mlx_guarded_llm.cli.demo.summary import show_report
from mlx_guarded_llm.record import timeline
from mlx_guarded_llm.record.histories import read
from mlx_guarded_llm.results import Collector

from ...record.incidents import BIG, PHI, ZERO, at, crash, incident
from ..conftest import last_chunk


def parts() -> tuple[Part, Part]:
    a = Part(label="A", model="/models/big", prompt="Why?", max_tokens=30)
    b = Part(label="B", model="phi3", prompt="Who?", max_tokens=10)
    return a, b


def answered() -> tuple[Part, Part]:
    both = parts()
    for part in both:
        part.result = Collector([last_chunk(text="x", served_model=part.model)]).result()
    return both


SEEN = {"load": 2, "step": 40}


def test_the_story_is_read_off_the_record() -> None:
    assert list(record_summary.story(timeline(incident()).histories)) == [
        f"r1 ({BIG}) generated from 0.00 s to 200 s, 1700 tokens, "
        "and stood still once, for 2.50 s.",
        f"r2 ({PHI}) generated from 178 s to 189 s, 201 tokens.",
        f"The load of {PHI} was deferred for 120 s behind r1 ({BIG}), "
        "then ran from 176 s to 178 s, while r1 stood still.",
    ]


def test_a_load_that_failed_and_a_request_that_never_ran() -> None:
    events = [
        at(0, "request.queued", PHI, "r1"),
        at(0, "load.queued", PHI, "r1", job="j1"),
        at(1, "load.started", PHI, "r1", job="j1"),
        at(2, "load.failed", PHI, "r1", job="j1", cause="broken"),
        at(2, "request.failed", PHI, "r1", cause="LoadFailed: broken"),
    ]
    assert list(record_summary.story(read(events))) == [
        f"r1 ({PHI}) did not generate: LoadFailed: broken.",
        f"The load of {PHI} ran from 1.00 s to 2.00 s, then failed (broken).",
    ]


def test_the_report_of_a_sound_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_report(timeline(incident()), answered(), SEEN)
    printed = capsys.readouterr().out
    assert "Nothing overlapped" in printed
    assert "2 loads and 40 generation steps" in printed
    assert "1.0/s" in printed


def test_an_overlap_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert not show_report(timeline(crash()), answered(), SEEN)
    printed = capsys.readouterr().out
    assert "OVERLAP" in printed
    assert "Nothing overlapped" not in printed


@pytest.mark.parametrize("seen", [{}, {"load": 2}, {"step": 3}])
def test_a_witness_that_saw_nothing_proves_nothing(seen: dict[str, int]) -> None:
    assert not show_report(timeline(incident()), answered(), seen)


def test_a_missing_answer_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = answered()
    b.result = None
    assert not show_report(timeline(incident()), (a, b), SEEN)
    assert "no answer" in capsys.readouterr().out


def test_lines_say_who_and_break_between_words() -> None:
    screen = io.StringIO()
    with LineBoard(parts(), Console(file=screen, width=60)) as board:
        board.tell([at(0, "request.queued", "/models/big", "request-A")])
        for piece in ("The sky is blue becau", "se of ", "the air \x1b[2J and", " so on"):
            board.add("A", piece)
        board.add("B", "Two\nlines")
        board.tell(
            [
                at(2, "load.deferred", "phi3", "request-B", job="j1",
                   behind=(("request-A", "/models/big"),)),
            ]
        )  # fmt: skip
    lines = screen.getvalue().splitlines()
    assert [line.split("|")[1].strip() for line in lines] == [
        "The sky is blue because of the air [2J",
        "Two",
        "and so on",
        "lines",
        "load of phi3 deferred behind request-A",
    ]
    assert "A big" in lines[0]
    assert "B phi3" in lines[1]
    assert lines[-1].startswith(" 2.00 s guard")


@pytest.mark.parametrize("width", [80, 120])
def test_panels_show_both_answers_and_the_guard(width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=40)
    with PanelBoard(parts(), console) as board:
        board.tell([at(0, "request.queued", "/models/big", "request-A")])
        board.tell([at(1, "request.started", "/models/big", "request-A")])
        board.add("A", "The sky is blue. " * 40)
        board.add("B", "Nobody.")
        board._live.refresh()
    printed = screen.getvalue()
    assert "request-A started" in printed
    assert "reading its prompt" in printed
    final = printed[printed.rindex("Why?") :]
    assert final.count("sky") == 40, "the whole answer stays on the screen"
    assert "Nobody." in final


def test_states() -> None:
    def at_time(time: float, request: str) -> str:
        histories = read([event for event in incident() if event.time <= ZERO + time])
        return state(histories, request, ZERO + time)

    assert at_time(10, "r2") == "not asked yet"
    assert at_time(1, "r1") == "reading its prompt"
    assert at_time(100, "r1") == "generating"
    assert at_time(100, "r2") == "its load is deferred for 44.0 s"
    assert at_time(177, "r1") == "paused for 1.00 s"
    assert at_time(177, "r2") == "its model is being loaded"
    assert at_time(190, "r2") == "finished, 201 tokens"


@pytest.mark.parametrize(
    ("code", "died", "says"),
    [
        ("import os; print('A load began', flush=True); os.abort()", True, "died of SIGABRT"),
        ("print('fine')", False, "ended with exit code 0"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", False, "died of SIGKILL"),
    ],
)
def test_naive_tells_how_it_ended(
    code: str,
    died: bool,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "naive_for_this_test.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(demo_naive, "NAIVE", "naive_for_this_test")
    assert sys.executable
    assert demo_naive.show_naive(Path("/a/big"), Path("/a/phi3"), "Why?", 30) is died
    printed = capsys.readouterr().out
    assert says in printed
    assert "answers with big" in printed
