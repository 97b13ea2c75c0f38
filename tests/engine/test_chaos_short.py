"""A few kills of the chaos, so that it cannot rot and a gross fault shows at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_eight_kills_of_the_chaos(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/chaos.py", "--kills", "8", "--seed", "7"]
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=330,  # against hanging only: it takes less than a minute on an idle machine
        cwd=ROOT,
        env={**os.environ, "MLX_GUARDED_CACHE_DIR": str(tmp_path)},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    summary = re.search(
        r"^chaos: ok: (\d+) kills, (\d+) answers, (\d+) resumed", finished.stdout, re.M
    )
    assert summary is not None, finished.stdout
    kills, answers, resumed = map(int, summary.groups())
    assert kills == 8
    assert answers > 0 and resumed > 0, "it judged nothing"  # right ones: else it had failed
