from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.backend import crashes as module
from mlx_guarded_llm.backend.crashes import Crashes, versions
from mlx_guarded_llm.worker.parent.death import Death


def death(pid: int = 1, **more: Any) -> Death:
    fields: dict[str, Any] = {
        "cause": "abort",
        "text": "the worker died",
        "code": -6,
        "work": "step",
        "model": "phi3",
        "stderr": "last words",
        "lived": 3.5,
    }
    return Death(pid=pid, **(fields | more))


def pids(log: Crashes) -> list[int]:
    return [crash.death.pid for crash in log.read()]


def test_nothing_is_known_at_first(tmp_path: Path) -> None:
    assert Crashes(tmp_path / "none" / "crashes.json").read() == []
    assert list(tmp_path.iterdir()) == [], "reading leaves nothing behind"


def test_a_death_outlives_the_process(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    Crashes(tmp_path / "deep" / "crashes.json").add(death())
    (crash,) = Crashes(tmp_path / "deep" / "crashes.json").read()
    assert crash.death == death()
    assert crash.versions == versions() and {"mlx-guarded-llm", "mlx-lm"} <= set(crash.versions)
    assert before - timedelta(seconds=1) <= crash.time <= datetime.now(UTC)


def test_a_death_of_which_little_is_known(tmp_path: Path) -> None:
    log = Crashes(tmp_path / "crashes.json")
    bare = Death(cause="not_started", text="it did not start", pid=7)
    log.add(bare)
    assert [crash.death for crash in log.read()] == [bare]


def test_the_end_of_a_long_stderr_is_kept(tmp_path: Path) -> None:
    log = Crashes(tmp_path / "crashes.json")
    log.add(death(stderr="x" * 10_000 + "\udcff why"))
    (crash,) = log.read()
    assert len(crash.death.stderr) == 2000 and crash.death.stderr.endswith("x\udcff why")


def test_the_newest_fifty_are_kept(tmp_path: Path) -> None:
    log = Crashes(tmp_path / "crashes.json")
    for pid in range(1, 61):
        log.add(death(pid))
    assert pids(log) == list(range(11, 61))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"3",
        b"\xff\xfe",
        b"[" * 100_000,
        b'[null, 3, [], {}, {"time": 3}]',
        b'[{"time": "2026-01-01T00:00:00+00:00", "cause": "abort"}]',
    ],
)
def test_a_broken_file_is_no_crash_and_heals(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "crashes.json"
    file.write_bytes(content)
    log = Crashes(file)
    assert log.read() == []
    log.add(death())
    assert pids(log) == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"time": "yesterday"},
        {"time": None},
        {"cause": "boredom"},
        {"work": ["step"]},
        {"pid": "one"},
        {"code": "six"},
        {"lived": None},
        {"versions": ["1.0"]},
    ],
)
def test_only_the_broken_entry_is_lost(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "crashes.json"
    log = Crashes(file)
    log.add(death(1))
    log.add(death(2))
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([{**entries[0], **change}, entries[1]]))
    assert pids(log) == [2]
    log.add(death(3))
    assert pids(log) == [2, 3]


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = Crashes(tmp_path / "file" / "crashes.json")
    log.add(death())
    assert log.read() == []


def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Crashes(tmp_path / "crashes.json")
    log.add(death(1))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("json.dump", full)
    log.add(death(2))
    assert pids(log) == [1]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".crashes")]


def test_a_lock_that_is_never_released_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    monkeypatch.setattr(module, "_LOCK_WAIT", 0.0)
    log = Crashes(tmp_path / "crashes.json")
    with FileLock(tmp_path / "crashes.lock"):
        log.add(death())
    assert pids(log) == [1]


def test_processes_and_threads_may_add_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOCK_WAIT", 60.0)
    file = tmp_path / "crashes.json"
    script = f"""
from pathlib import Path
from mlx_guarded_llm.backend import crashes
from mlx_guarded_llm.worker.parent.death import Death
crashes._LOCK_WAIT = 60.0
for pid in range(1, 11):
    crashes.Crashes(Path({str(file)!r})).add(Death(cause="exit", text="", pid=pid))
"""
    child = subprocess.Popen([sys.executable, "-c", script])
    log = Crashes(file)
    threads = [threading.Thread(target=log.add, args=(death(pid),)) for pid in range(11, 31)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert child.wait(60) == 0
    assert sorted(pids(log)) == list(range(1, 31))
