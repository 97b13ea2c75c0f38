"""Run the notebooks and keep their outputs: `python notebooks/run.py [name ...]`.

The .py files are edited; the .ipynb files beside them are made from them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
TIMEOUT = 900  # seconds for one cell


def run(source: Path) -> None:
    """Execute one notebook and write it with its outputs."""
    notebook = jupytext.read(source)
    NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
        record_timing=False,
    ).execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # a random one would be a change at each run
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    nbformat.validate(notebook)
    nbformat.write(notebook, source.with_suffix(".ipynb"))


def joined(outputs: list[Any]) -> list[Any]:
    """Join what was printed in pieces; nbclient's own way mixes it up with what is shown."""
    whole: list[Any] = []
    for output in outputs:
        last = whole[-1] if whole else None
        if last and output.output_type == "stream" and output.get("name") == last.get("name"):
            last.text += output.text
        else:
            whole.append(output)
    return whole


def sources() -> list[Path]:
    """The notebooks as scripts."""
    return sorted(path for path in FOLDER.glob("*.py") if path != Path(__file__))


if __name__ == "__main__":
    wanted = sys.argv[1:]
    for path in sources():
        if not wanted or path.stem in wanted:
            print(path.stem, flush=True)
            run(path)
