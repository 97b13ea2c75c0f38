from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mlx_guarded_llm.models.processes import run_watched


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_status_and_the_last_line_come_back() -> None:
    code = "import sys; print('one'); sys.stderr.write('two\\n\\n'); sys.exit(3)"
    ended = run_watched(_python(code), timeout=60, env=os.environ)
    assert (ended.returncode, ended.last_line) == (3, "two")


def test_much_output_blocks_nobody() -> None:
    ended = run_watched(_python("print('x' * 10**6)"), timeout=60, env=os.environ)
    assert len(ended.last_line) == 10**6


def test_the_deadline_kills() -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        run_watched(_python("import time; time.sleep(60)"), timeout=0.2, env=os.environ)
    assert time.monotonic() - start < 30


def test_what_watching_raises_kills() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_watched(_python("import time; time.sleep(60)"), timeout=60, env=os.environ, watch=stop)
    assert time.monotonic() - start < 30


def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    child = f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid()))"
    script = (
        "import os, sys\n"
        "from mlx_guarded_llm.models.processes import run_watched\n"
        f"run_watched([sys.executable, '-c', {child + '; time.sleep(600)'!r}], "
        "timeout=600, env=os.environ)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        wait_for(lambda: told.exists() and told.read_text())
        parent.kill()
    pid = int(told.read_text())
    wait_for(lambda: not psutil.pid_exists(pid))


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)
