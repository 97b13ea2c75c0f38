"""Small JSON files that are useful to have, and never necessary."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """What the file holds; None if it is missing, broken or not readable."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def write_json(path: Path, value: object) -> None:
    """Write the file and its folder. If the disk refuses, nothing is written.

    If two processes write at once, the later one wins. No reader sees half a file.
    """
    work = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, work = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
        Path(work).replace(path)
    except OSError:
        if work is not None:
            with contextlib.suppress(OSError):
                Path(work).unlink()
