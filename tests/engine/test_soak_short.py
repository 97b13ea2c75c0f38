"""A little of the soak, so that it cannot rot and a gross fault shows at once."""

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
def test_a_quarter_of_a_minute_of_the_soak(isolation: str, tmp_path: Path) -> None:
    options = ["--minutes", "0.25", "--isolation", isolation, "--seed", "7"]
    command = [sys.executable, "benchmarks/soak.py", *options]
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=330,  # against hanging only: it takes half a minute on an idle machine
        cwd=ROOT,
        env={**os.environ, "MLX_GUARDED_CACHE_DIR": str(tmp_path)},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    summary = re.search(r"^soak: ok: (\d+) operations, (\d+) periods", finished.stdout, re.M)
    assert summary is not None, finished.stdout
    assert int(summary[1]) > 20 and int(summary[2]) > 1
    saw = re.search(r"the witness saw (.*)", finished.stdout)
    assert saw is not None
    for kind in ("loads", "steps", "unloads", "foreigns"):
        assert kind in saw[1]
