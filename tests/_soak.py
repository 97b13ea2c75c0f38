"""A little of a long run of `tests/soak`, so that it cannot rot and a gross fault shows at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def soaked(module: str, *options: str, cache: Path | None = None) -> str:
    """Run a module of `tests.soak`, which must succeed, and return what it prints.

    Args:
        module: its name.
        options: of its command line.
        cache: the cache folder that it has; None is the user's.
    """
    own = {} if cache is None else {"MLX_GUARDED_CACHE_DIR": str(cache)}
    finished = subprocess.run(
        [sys.executable, "-m", f"tests.soak.{module}", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=330,  # against hanging only: it takes less than a minute on an idle machine
        cwd=ROOT,
        env={**os.environ, **own},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout
