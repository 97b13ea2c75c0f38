"""The examples of the docs, as modules and as scripts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "docs" / "examples"


@cache
def example(name: str) -> Any:
    """An example, imported; it does nothing until it is told to."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: str, cache_dir: Path) -> str:
    """What an example prints as a script, run to its end without a network."""
    ended = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        env={**os.environ, "MLX_GUARDED_CACHE_DIR": str(cache_dir), "HF_HUB_OFFLINE": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
