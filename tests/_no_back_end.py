"""Processes in which MLX has no back end, as on Linux without one of its extras."""

from __future__ import annotations

from pathlib import Path

_HIDING = """
import sys

class NoBackEnd:
    def find_spec(self, name, path=None, target=None):
        if name == "mlx.core":
            raise ImportError("libmlx.so: cannot open shared object file")

sys.meta_path.insert(0, NoBackEnd())
"""


def no_back_end(folder: Path) -> str:
    """A PYTHONPATH with which every Python starts so, a worker's too."""
    start = folder / "start"
    start.mkdir()
    (start / "sitecustomize.py").write_text(_HIDING)
    return str(start)
