"""The committed notebooks are those of the scripts beside them, run to their end."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext  # type: ignore[import-untyped]  # it ships no types
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def read(path: Path) -> nbformat.NotebookNode:
    found: nbformat.NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    return found


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {
        path.stem for path in FOLDER.glob("*.py") if path.stem != "run"
    }
    assert NOTEBOOKS


def test_the_notebook_has_the_cells_of_its_script(notebook: Path) -> None:
    script = jupytext.read(notebook.with_suffix(".py"))
    written = read(notebook)
    assert [(cell.cell_type, cell.source) for cell in written.cells] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ], "run `make notebooks`"


def test_it_was_run_to_its_end_without_errors(notebook: Path) -> None:
    code = [cell for cell in read(notebook).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert not any("Warning" in output.get("text", "") for output in outputs)


def test_what_it_shows_needs_nothing_from_outside(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    assert "text/html" in text
    assert "<script" not in text
    sources = re.findall(r"(?:src|data)=\\?[\"']([^\"'\\\\]*)", text)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)


def test_it_does_not_tell_where_it_was_run(notebook: Path) -> None:
    outputs = [output for cell in read(notebook).cells for output in cell.get("outputs", [])]
    assert not re.search(
        r"(?<![\w:.])/(?:home|root|Users|work|tmp|private|var|opt)/", repr(outputs)
    )
