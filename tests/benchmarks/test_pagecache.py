"""The page cache, as far as the machine lets one look at it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.pagecache import cached, drop
from benchmarks.side import CannotRun

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def test_a_file_that_was_just_read_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"x" * 1_000_000)
    file.read_bytes()
    assert cached(file) == 1.0


def test_a_file_that_was_dropped_is_gone_or_the_machine_is_said_not_to_drop(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"x" * 1_000_000)
    try:
        drop([file])
    except CannotRun:
        pytest.skip("this machine does not drop files")
    assert cached(file) < 0.05
    assert len(file.read_bytes()) == 1_000_000
