"""On Linux MLX may lie here without a back end; each command says how to get one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_guarded_llm.testing.tiny import make_tiny_model
from tests._no_back_end import no_back_end

PIP_LINE = 'pip install "mlx-guarded-llm[cpu]"'


@pytest.mark.parametrize(
    "arguments", [["models"], ["models", "--json"], ["doctor"], ["run", "MODEL", "Hello"]]
)
def test_the_line_for_pip_is_given(arguments: list[str], tmp_path: Path) -> None:
    model = str(make_tiny_model(tmp_path / "tiny"))
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "mlx_guarded_llm",
            *[model if a == "MODEL" else a for a in arguments],
        ],
        env={
            **os.environ,
            "PYTHONPATH": no_back_end(tmp_path),
            "MLX_GUARDED_CACHE_DIR": str(tmp_path / "cache"),
            "HF_HOME": str(tmp_path / "hub"),
            "COLUMNS": "400",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = " ".join((ended.stdout + ended.stderr).split())
    assert ended.returncode == 1, told
    assert "libmlx.so" in told and PIP_LINE in told
    assert "a fault of mlx-guarded-llm" not in told and "Traceback" not in told
