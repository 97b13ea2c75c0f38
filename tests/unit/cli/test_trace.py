from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_guarded_llm.cli.trace_file import read_trace
from mlx_guarded_llm.record import Event, overlaps, timeline, write_perfetto

from ..record.incidents import BIG, PHI, at, crash, incident
from .conftest import Run

FAILED: list[Event] = [
    at(0, "engine.started"),
    at(0, "request.queued", BIG, "r1"),
    at(1, "request.started", BIG, "r1"),
    at(1, "request.queued", BIG, "r2"),
    at(1, "request.started", BIG, "r2"),
    at(3, "request.failed", BIG, "r1", cause="EngineDied: gone"),
    at(3, "engine.failed", cause="gone"),
    at(4, "load.queued", PHI, "r3", job="j1"),
    at(5, "load.started", PHI, "r3", job="j1"),
]


@pytest.mark.parametrize(
    "events", [incident(), crash(), FAILED], ids=["incident", "crash", "failed"]
)
def test_a_trace_comes_back_as_it_was(events: list[Event], tmp_path: Path) -> None:
    written = timeline(events)
    found = read_trace(write_perfetto(events, tmp_path / "trace.json"))
    assert [(row.model, row.lanes) for row in found.rows] == [
        (row.model, row.lanes) for row in written.rows
    ]
    for row, before in zip(found.rows, written.rows, strict=True):
        assert [(s.kind, s.phase, s.lane, s.request_id, s.job_id) for s in row.spans] == [
            (s.kind, s.phase, s.lane, s.request_id, s.job_id) for s in before.spans
        ]
        assert [time for s in row.spans for time in (s.start, s.end)] == pytest.approx(
            [time - written.start for s in before.spans for time in (s.start, s.end)]
        )
    assert [(m.kind, m.row, m.lane) for m in found.marks] == [
        (m.kind, m.row, m.lane) for m in written.marks
    ]
    assert found.end == pytest.approx(written.end - written.start)
    assert len(overlaps(found)) == len(overlaps(written))


def test_a_sound_trace(run: Run, tmp_path: Path) -> None:
    done = run("trace", write_perfetto(incident(), tmp_path / "trace.json"))
    assert done.exit_code == 0, done.stderr
    assert "deferred" in done.stdout
    assert "Nothing overlapped: 2 generations and 1 load" in done.stdout


def test_a_trace_of_an_overlap(run: Run, tmp_path: Path) -> None:
    done = run("trace", write_perfetto(crash(), tmp_path / "trace.json"))
    assert done.exit_code == 1
    assert f"OVERLAP: {PHI} was loading while r1 ({BIG}) was generating, for" in done.stdout


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", json.dumps({"traceEvents": []}), "\x00"])
def test_what_is_no_trace(run: Run, tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace.json"
    file.write_text(text)
    done = run("trace", file)
    assert done.exit_code == 2
    assert "is no trace of mlx-guarded-llm" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_record(run: Run, tmp_path: Path) -> None:
    done = run("trace", write_perfetto([], tmp_path / "trace.json"))
    assert done.exit_code == 0
    assert "Nothing was recorded." in done.stdout
