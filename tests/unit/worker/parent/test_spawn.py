"""Which Python a worker is started with, and where it looks for modules."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

from mlx_guarded_llm.worker.parent.process import WorkerProcess
from mlx_guarded_llm.worker.parent.spawn import CannotStart, search_path, spawn


def descriptors() -> int:
    gc.collect()
    return sum(1 for _ in Path("/dev/fd").iterdir())


def python_in(folder: Path) -> Path:
    """An interpreter of the name `python3` that says no more than its name."""
    file = folder / "bin" / "python3"
    file.parent.mkdir()
    file.write_text('#!/bin/sh\necho "$0"\n')
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("executable", ["", None, "/usr/sbin/httpd"])
def test_a_server_that_has_python_inside(
    executable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = python_in(tmp_path)
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    spawned = spawn()
    with os.fdopen(spawned.stdout) as stdout:
        assert stdout.read().strip() == str(file)
    assert spawned.popen.wait() == 0
    os.close(spawned.stderr)
    spawned.socket.close()


@pytest.mark.parametrize("executable", ["", "/usr/sbin/httpd"])
def test_no_python_anywhere(
    executable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(CannotStart, match="no Python") as caught:
        spawn()
    assert 'isolation="thread"' in caught.value.hint


def test_a_frozen_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(CannotStart, match="frozen"):
        spawn()


@pytest.mark.parametrize("broken", ["missing", "no program"])
def test_a_python_that_cannot_be_run(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "python3"
    if broken == "no program":
        file.write_text("text")
    monkeypatch.setattr(sys, "executable", str(file))
    before = descriptors()
    with pytest.raises(CannotStart, match="python3"):
        spawn()
    assert descriptors() == before
    process = WorkerProcess()  # which raises nothing
    assert isinstance(process.failure, CannotStart)
    assert not process.alive and process.pid == 0 and process.rss == 0
    process.end()
    process.stop()


def test_where_it_looks_for_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "lib", "/usr/lib/python"])
    assert search_path() == (str(tmp_path), str(tmp_path / "lib"), "/usr/lib/python")


def test_in_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    monkeypatch.setattr(sys, "path", ["", "/usr/lib/python"])
    assert search_path()[-1] == "/usr/lib/python"
