"""What a worker is doing, on a page that outlives it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mlx_guarded_llm.worker import status_page
from mlx_guarded_llm.worker.status_page import (
    StatusReader,
    StatusWriter,
    WorkerStatus,
    make_page,
)


@pytest.fixture
def page() -> Iterator[int]:
    descriptor = make_page()
    yield descriptor
    os.close(descriptor)


def test_before_anything_was_written_it_is_alive_and_idle(page: int) -> None:
    before = time.monotonic()
    status = StatusReader(page).read()
    assert (status.work, status.model, status.longest) == ("", "", 0.0)
    assert status.heartbeat >= before and status.since >= before


def test_a_piece_of_work(page: int) -> None:
    reader, writer = StatusReader(page), StatusWriter(page)
    began = time.monotonic()
    writer.began("load", "phi3-mini")
    status = reader.read()
    assert (status.work, status.model, status.longest) == ("load", "phi3-mini", 0.0)
    assert began <= status.since <= time.monotonic()
    writer.ended()
    status = reader.read()
    assert (status.work, status.model) == ("", "")


def test_the_longest_of_each_work_with_each_model(page: int) -> None:
    reader, writer = StatusReader(page), StatusWriter(page)
    writer.began("step", "a")
    slow = reader.read().since
    while time.monotonic() < slow + 0.002:
        pass
    writer.ended()
    least = 0.002
    writer.began("step", "a")
    longest = reader.read().longest
    assert longest >= least
    writer.ended()
    writer.began("step", "a")
    assert reader.read().longest >= longest, "a short one changes nothing"
    writer.ended()
    for work, model in (("load", "a"), ("step", "b")):
        writer.began(work, model)  # type: ignore[arg-type]
        assert reader.read().longest == 0.0
        writer.ended()


def test_a_load_that_goes_on(page: int) -> None:
    reader, writer = StatusReader(page), StatusWriter(page)
    writer.began("load", "a")
    first = reader.read()
    while time.monotonic() == first.since:
        pass
    writer.went_on()
    status = reader.read()
    assert status.since > first.since
    assert (status.work, status.model) == ("load", "a")


def test_a_step_whose_text_is_read(page: int) -> None:
    reader, writer = StatusReader(page), StatusWriter(page)
    writer.began("step", "a")
    first = reader.read()
    while time.monotonic() == first.since:
        pass
    writer.computed()
    status = reader.read()
    assert status.since > first.since
    assert (status.work, status.model) == ("step", "a")
    writer.ended()
    assert reader.read().work == ""


def test_what_broke_the_engine_stays(page: int) -> None:
    reader, writer = StatusReader(page), StatusWriter(page)
    writer.began("load", "b")
    writer.failed("step", "a")
    writer.ended()
    writer.began("unload", "b")
    assert (reader.read().work, reader.read().model) == ("step", "a")


def test_beats(page: int) -> None:
    reader, writer = StatusReader(page), StatusWriter(page)
    assert reader.read().heartbeat > time.monotonic(), "Python is given time to start"
    writer.beat()
    first = reader.read().heartbeat
    assert first <= time.monotonic()
    while time.monotonic() == first:
        pass
    writer.beat()
    assert reader.read().heartbeat > first


@pytest.mark.parametrize(
    ("name", "kept"),
    [("", ""), ("a/b c", "a/b c"), ("é" * 100, "é" * 100), ("é" * 5000, "é" * 2048)],
)
def test_names(page: int, name: str, kept: str) -> None:
    reader, writer = StatusReader(page), StatusWriter(page)
    writer.began("run", name)
    assert reader.read().model == kept


def test_very_many_names(page: int) -> None:
    reader, writer = StatusReader(page), StatusWriter(page)
    for n in range(2500):
        writer.began("run", f"label {n}")
        assert reader.read().model == f"label {n}"
        writer.ended()


def test_read_while_it_is_written_every_note_is_whole(page: int) -> None:
    """Written by another process, which no lock of this interpreter keeps from the page."""
    reader = StatusReader(page)
    start = time.monotonic()
    code = """
import sys
from mlx_guarded_llm.worker.status_page import StatusWriter
writer = StatusWriter(int(sys.argv[1]))
writer.beat()
writer.preparing(2, "prepared", "ticket")
while True:
    writer.began("load", "loaded")
    writer.went_on()
    writer.ended()
    writer.began("step", "stepped")
    writer.computed()
    writer.beat()
    writer.ended()
    writer.preparing(1, "prepared", "ticket")
    writer.prepared(1)
"""
    with _another_process(code, page) as process:
        while not (first := reader.read()).work:
            assert process.poll() is None
        seen: set[tuple[str, str]] = {(first.work, first.model)}
        for _ in range(30_000):
            status = reader.read()
            seen.add((status.work, status.model))
            _is_whole(status, start)
    assert {("load", "loaded"), ("step", "stepped")} <= seen
    assert seen <= {("", ""), ("load", "loaded"), ("step", "stepped")}


def test_a_writer_that_stops_at_any_byte_leaves_whole_notes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is killed there, or its machine gives it no time for as long as it likes."""
    write = status_page._write
    left = 0

    def write_what_is_left(page: mmap.mmap, at: int, data: bytes) -> None:
        nonlocal left
        write(page, at, data[:left])
        left = max(left - len(data), 0)

    monkeypatch.setattr(status_page, "_write", write_what_is_left)
    seen = []
    for stop in range(5500):
        page = make_page()
        left = 10_000
        reader, writer = StatusReader(page), StatusWriter(page)
        os.close(page)
        writer.began("load", "a" * 500)
        left = stop
        writer.preparing(0, "prepared", "ticket")
        writer.began("step", "b" * 400)
        status = reader.read()
        prepared = tuple((one.model, one.request_id) for one in status.preparing)
        if (one := (status.work, status.model, prepared)) not in seen:
            seen.append(one)
        reader.close()
    assert seen == [
        ("load", "a" * 500, ()),
        ("load", "a" * 500, (("prepared", "ticket"),)),
        ("step", "b" * 400, (("prepared", "ticket"),)),
    ]


@contextmanager
def _another_process(code: str, page: int) -> Iterator[subprocess.Popen[bytes]]:
    os.set_inheritable(page, True)
    process = subprocess.Popen([sys.executable, "-c", code, str(page)], pass_fds=[page])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _is_whole(status: WorkerStatus, start: float) -> None:
    assert start - 60 <= min(status.since, status.heartbeat)
    assert status.longest < 60
    for request in status.preparing:
        assert (request.model, request.request_id) == ("prepared", "ticket")
        assert request.since >= start


def test_it_outlives_the_writer(page: int) -> None:
    reader = StatusReader(page)
    os.set_inheritable(page, True)
    code = """
import os, signal, sys
from mlx_guarded_llm.worker.status_page import StatusWriter
writer = StatusWriter(int(sys.argv[1]))
writer.began("step", "culprit")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(page)], pass_fds=[page], check=False)
    assert (reader.read().work, reader.read().model) == ("step", "culprit")


def test_requests_that_are_prepared(page: int) -> None:
    reader, writer = StatusReader(page), StatusWriter(page)
    assert reader.read().preparing == ()
    writer.began("step", "phi3")
    writer.preparing(3, "é" * 5000, "ticket-1")
    writer.preparing(0, "llama", "ticket-2")
    first, second = reader.read().preparing
    assert (first.model, first.request_id) == ("llama", "ticket-2")
    assert (second.model, second.request_id) == ("é" * 256, "ticket-1")
    assert 0 < second.since <= first.since <= time.monotonic()
    writer.prepared(0)
    writer.ended()
    assert reader.read().preparing == (second,) and reader.read().work == ""
