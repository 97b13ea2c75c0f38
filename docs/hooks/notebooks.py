"""MkDocs hook: each of the notebooks is a page, with its outputs, and a file to download."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File

FOLDER = Path(__file__).parents[2] / "notebooks"
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_LINK = re.compile(r"\((\w+)\.ipynb\)")


def on_files(files: Any, *, config: Any, **_: Any) -> Any:
    """Add the pages and the notebooks."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        text = "\n\n".join(_parts(path))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    return files


def _parts(path: Path) -> Iterator[str]:
    """A notebook in Markdown."""
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    title, *cells = notebook.cells
    yield _LINK.sub(r"(\1.md)", title.source)
    yield f"*[{path.name}]({path.name}), as it ran on two cores of a CPU.*"
    for cell in cells:
        if cell.cell_type == "markdown":
            yield _LINK.sub(r"(\1.md)", cell.source)
            continue
        yield f"```python\n{cell.source}\n```"
        for output in cell.outputs:
            yield _shown(output)


def _shown(output: Any) -> str:
    data = output.get("data", {})
    if "text/html" in data:
        return f'<div class="notebook-output">{data["text/html"]}</div>'
    text = output.text if output.output_type == "stream" else data["text/plain"]
    return f"```text\n{_COLOUR.sub('', text).rstrip()}\n```"
