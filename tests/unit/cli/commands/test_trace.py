from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_guarded_llm.record import write_perfetto

from ...record.incidents import BIG, PHI, crash, incident
from ..conftest import Run


def test_a_sound_trace(run: Run, tmp_path: Path) -> None:
    done = run("trace", write_perfetto(incident(), tmp_path / "trace.json"))
    assert done.exit_code == 0, done.stderr
    assert "deferred" in done.stdout
    assert "Nothing overlapped: 2 generations and 1 load" in done.stdout


def test_a_trace_of_an_overlap(run: Run, tmp_path: Path) -> None:
    done = run("trace", write_perfetto(crash(), tmp_path / "trace.json"))
    assert done.exit_code == 1
    assert f"OVERLAP: {PHI} was loading while r1 ({BIG}) was generating, for" in done.stdout


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "\x00"])
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


def test_a_trace_without_events(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    file.write_text(json.dumps({"traceEvents": [], "displayTimeUnit": "ms"}))
    done = run("trace", file)
    assert done.exit_code == 2
    assert "without the events of mlx-guarded-llm" in done.stderr
    assert "ui.perfetto.dev" in done.stderr  # what can still be done with it
