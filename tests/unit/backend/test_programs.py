"""Programs that claim memory, with real files and locks.

Two `Programs` in one process have files of their own, whose locks shut each other out, as those of
two processes do.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlx_guarded_llm.backend import programs, runtime_folder
from mlx_guarded_llm.backend.programs import Answer, Claim, Programs, Tell
from mlx_guarded_llm.holder import Holder, listed
from mlx_guarded_llm.logs import flush as flush_logs

BUDGET = 100


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the entries, which is not there yet."""
    monkeypatch.setenv(runtime_folder.VARIABLE, str(tmp_path / "run"))
    return tmp_path / "run" / "programs"


@pytest.fixture
def mine() -> Iterator[Programs]:
    yield from ended(Programs())


@pytest.fixture
def other() -> Iterator[Programs]:
    yield from ended(Programs())


def ended(program: Programs) -> Iterator[Programs]:
    yield program
    for owner in range(5):
        program.release(owner)
    assert program.flush(60)


def claim(
    program: Programs,
    size: int,
    *,
    owner: int = 0,
    device: str = "cpu",
    models: Mapping[str, int] | None = None,
) -> Answer | None:
    """Claim, and wait for the answer."""
    told: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
    assert program.claim(
        owner, Claim(device=device, bytes=size, models=models or {}), BUDGET, told.put
    )
    return told.get(timeout=60)


def granted(program: Programs, size: int, *, owner: int = 0, **models: int) -> int:
    answer = claim(program, size, owner=owner, models=models)
    assert answer is not None
    return answer.granted


def files(entries: Path) -> list[Path]:
    return sorted(entries.glob("*.json"))


def test_others_are_named_and_what_they_leave_is_granted(mine: Programs, other: Programs) -> None:
    assert claim(mine, 70, models={"m": 60, "n": 10}) == Answer(70, ())
    answer = claim(other, 50)
    assert answer is not None and answer.granted == 30
    (holder,) = answer.others
    assert (holder.pid, holder.bytes, holder.models) == (os.getpid(), 70, ("m", "n"))
    assert holder.program and str(os.getpid()) in listed(answer.others)
    assert other.others() == [("cpu", holder)]


def test_what_is_given_back_is_free(mine: Programs, other: Programs, entries: Path) -> None:
    assert granted(mine, 70) == 70 and granted(mine, 20) == 20, "less is always granted"
    assert granted(other, 80) == 80
    assert granted(mine, 40) == 20, "what it holds stays its own"
    other.release(0)
    assert other.flush(60)
    assert granted(mine, 100) == 100
    assert granted(mine, 0) == 0 and files(entries) == []


def test_backends_of_one_program_are_one_entry(
    mine: Programs, other: Programs, entries: Path
) -> None:
    assert granted(mine, 40, owner=1, m=1) == 40 and granted(mine, 100, owner=2, m=1, n=1) == 100
    assert len(files(entries)) == 1
    answer = claim(other, 10)
    assert answer is not None and answer.granted == 0
    assert [(h.bytes, h.models) for h in answer.others] == [(140, ("m", "n"))]
    mine.release(2)
    assert mine.flush(60) and granted(other, 70) == 60


def test_each_device_counts_for_itself(mine: Programs, other: Programs) -> None:
    assert granted(mine, 90) == 90
    assert claim(other, 90, device="gpu") == Answer(90, ())
    assert granted(other, 90, owner=1) == 10


def test_two_at_the_same_moment_do_not_get_more_than_there_is(
    mine: Programs, other: Programs
) -> None:
    for _ in range(20):
        told: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        start = threading.Barrier(2)

        def ask(program: Programs, tell: Tell, start: threading.Barrier) -> None:
            start.wait(60)
            program.claim(0, Claim(device="cpu", bytes=60, models={}), BUDGET, tell)

        threads = [
            threading.Thread(target=ask, args=(program, told.put, start))
            for program in (mine, other)
        ]
        for thread in threads:
            thread.start()
        answers = [told.get(timeout=60) for _ in threads]
        assert sorted(answer.granted for answer in answers if answer) == [40, 60]
        for program in (mine, other):
            program.release(0)
            assert program.flush(60)


def test_what_a_dead_program_left_behind_is_removed(mine: Programs, entries: Path) -> None:
    script = (
        "import sys, queue\n"
        "from mlx_guarded_llm.backend.programs import PROGRAMS, Claim\n"
        "told = queue.SimpleQueue()\n"
        "PROGRAMS.claim(0, Claim(device='cpu', bytes=90, models={'m': 90}), 100, told.put)\n"
        "print(told.get().granted, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "90\n"
        answer = claim(mine, 50)
        assert answer is not None and answer.granted == 10
        assert [(h.pid, h.models) for h in answer.others] == [(process.pid, ("m",))]
        process.kill()
        process.wait(60)
        assert len(files(entries)) == 2
        assert claim(mine, 50) == Answer(50, ())
        assert len(files(entries)) == 1


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff{",
        b"[" * 100_000,
        b"[]",
        b'{"pid": 1}',
        b'{"pid": 1, "program": "p", "claims": [{"device": "cpu", "bytes": -9, "models": {}}]}',
        b'{"pid": 1, "program": "p", "claims": [{"device": "cpu", "bytes": 1e9, "models": {}}]}',
        b'{"pid": null, "program": "p", "claims": []}',
        b'{"pid": 1, "program": "p", "claims": 5}',
    ],
)
def test_a_broken_entry_does_not_count(mine: Programs, entries: Path, text: bytes) -> None:
    entries.mkdir(parents=True)
    entries.parent.chmod(0o700)
    broken = entries / "1-broken.json"
    broken.write_bytes(text)
    with broken.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # somebody lives
        assert claim(mine, 100) == Answer(100, ())
        assert broken.exists()
    assert claim(mine, 100) == Answer(100, ()) and not broken.exists()


def test_what_is_no_file_is_left_alone(mine: Programs, entries: Path, tmp_path: Path) -> None:
    entries.mkdir(parents=True)
    entries.parent.chmod(0o700)
    (entries / "folder.json").mkdir()
    os.mkfifo(entries / "pipe.json")
    (entries / "link.json").symlink_to(tmp_path / "elsewhere.json")
    assert claim(mine, 100) == Answer(100, ())


def test_an_entry_that_somebody_tidied_up_is_written_again(
    mine: Programs, other: Programs, entries: Path
) -> None:
    assert granted(mine, 70) == 70
    shutil.rmtree(entries)
    assert granted(mine, 80) == 80 and granted(other, 100) == 20


def test_another_folder(
    mine: Programs, other: Programs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entries: Path
) -> None:
    assert granted(mine, 70) == 70
    monkeypatch.setenv(runtime_folder.VARIABLE, str(tmp_path / "elsewhere"))
    assert granted(mine, 80) == 80 and files(entries) == [] and granted(other, 100) == 20


def test_the_entry_of_many_models_stays_readable(mine: Programs, other: Programs) -> None:
    assert granted(mine, 70, **{f"m{i}" * 1000: i for i in range(100)}) == 70
    answer = claim(other, 1)
    assert answer is not None and len(answer.others[0].models) == 32
    assert len(answer.others[0].text) < 10_000


def test_a_forked_child_holds_nothing_and_keeps_no_lock(
    mine: Programs, other: Programs, entries: Path
) -> None:
    assert granted(mine, 70) == 70
    gone, stay = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        right = mine._claims == {} and mine._path is None and mine._fd == -1
        os.write(gone[1], b"1" if right else b"0")
        os.read(stay[0], 1)
        os._exit(0)
    assert os.read(gone[0], 1) == b"1"
    (entry,) = files(entries)
    # As a death of this process would, while the child lives on.
    os.close(mine._fd)
    mine._fd = os.open(os.devnull, os.O_RDONLY)
    assert granted(other, 100) == 100 and not entry.exists()
    os.write(stay[1], b"1")
    os.waitpid(child, 0)
    for fd in (*gone, *stay):
        os.close(fd)


def fails(mine: Programs, caplog: pytest.LogCaptureFixture, why: str) -> None:
    """Others cannot be counted. That is told once, and nothing else comes of it."""
    with caplog.at_level(logging.WARNING):
        assert claim(mine, 50) is None and claim(mine, 60) is None
        mine.release(0)
        assert mine.flush(60) and flush_logs(60)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not counted" in caplog.text and why in caplog.text
    with pytest.raises(OSError, match=why):
        mine.others()


def test_a_folder_that_cannot_be_made(
    mine: Programs,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(runtime_folder.VARIABLE, str(tmp_path / "file" / "run"))
    fails(mine, caplog, "File exists")


def test_a_folder_that_others_may_enter(
    mine: Programs, entries: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries.parent.mkdir(mode=0o755)
    entries.parent.chmod(0o755)
    fails(mine, caplog, "only this user")


def test_a_file_system_without_locks(
    mine: Programs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    fails(mine, caplog, "No locks available")


def test_a_lock_that_is_never_given_back(
    mine: Programs,
    entries: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(programs, "PATIENCE", 0.0)
    entries.mkdir(parents=True)
    entries.parent.chmod(0o700)
    with (entries / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fails(mine, caplog, "keeps")


@pytest.mark.parametrize(
    ("said", "counted"), [(None, True), ("1", True), ("", True), ("0", False), ("off", False)]
)
def test_the_variable(monkeypatch: pytest.MonkeyPatch, said: str | None, counted: bool) -> None:
    monkeypatch.delenv(programs.VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(programs.VARIABLE, said)
    assert programs.are_counted() is counted


def test_an_entry_is_json_and_nobody_elses(mine: Programs, entries: Path) -> None:
    granted(mine, 70, m=60)
    (entry,) = files(entries)
    told = json.loads(entry.read_text())
    assert told["claims"] == [{"device": "cpu", "bytes": 70, "models": {"m": 60}}]
    assert (told["pid"], entry.stat().st_mode & 0o777) == (os.getpid(), 0o600)


def test_many_holders_in_words() -> None:
    text = listed([Holder(f"p{i}", i, ("m",) * 5, 2**30) for i in range(5)])
    assert text.startswith("p0 (process 0) holds 1.00 GiB for m, m, m, 2 more; p1")
    assert text.endswith("; 2 more") and listed([]) == ""


_AT_RANDOM = """
import queue, random, sys
from mlx_guarded_llm.backend import programs
from mlx_guarded_llm.backend.programs import PROGRAMS, Claim
programs.PATIENCE = 60
chance = random.Random(int(sys.argv[1]))
told = queue.SimpleQueue()
while True:
    size = chance.choice([0, 20, 50, 80])
    PROGRAMS.claim(0, Claim(device="cpu", bytes=size, models={"m": size}), 100, told.put)
    assert told.get() is not None
    print(flush=True)
"""


def test_they_never_hold_more_than_there_is_whoever_is_killed(
    mine: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "PATIENCE", 60)
    with ExitStack() as ends:

        def start(seed: int) -> subprocess.Popen[str]:
            process = ends.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _AT_RANDOM, str(seed)], stdout=subprocess.PIPE, text=True
                )
            )
            ends.callback(process.kill)
            return process

        running = [start(seed) for seed in range(3)]
        for kill in range(3):
            for _ in range(30):
                for process in running:
                    assert process.stdout is not None and process.stdout.readline() == "\n"
                held = {holder.pid: holder.bytes for _, holder in mine.others()}
                assert set(held) <= {process.pid for process in running}
                assert sum(held.values()) <= BUDGET
            killed = running.pop(0)
            killed.kill()
            killed.wait(60)
            running.append(start(3 + kill))
