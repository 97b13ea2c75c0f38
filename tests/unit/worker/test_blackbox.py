"""What a worker is doing, on a page that outlives it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from mlx_guarded_llm.worker.blackbox import BlackBox, Reader, make_page


@pytest.fixture
def page() -> Iterator[int]:
    descriptor = make_page()
    yield descriptor
    os.close(descriptor)


def test_before_anything_was_written_it_is_alive_and_idle(page: int) -> None:
    before = time.monotonic()
    vital = Reader(page).read()
    assert (vital.work, vital.model, vital.longest) == ("", "", 0.0)
    assert vital.beat >= before and vital.since >= before


def test_a_piece_of_work(page: int) -> None:
    reader, box = Reader(page), BlackBox(page)
    began = time.monotonic()
    box.began("load", "phi3-mini")
    vital = reader.read()
    assert (vital.work, vital.model, vital.longest) == ("load", "phi3-mini", 0.0)
    assert began <= vital.since <= time.monotonic()
    box.ended()
    vital = reader.read()
    assert (vital.work, vital.model) == ("", "")


def test_the_longest_of_each_work_with_each_model(page: int) -> None:
    reader, box = Reader(page), BlackBox(page)
    box.began("step", "a")
    slow = reader.read().since
    while time.monotonic() < slow + 0.002:
        pass
    box.ended()
    least = 0.002
    box.began("step", "a")
    longest = reader.read().longest
    assert longest >= least
    box.ended()
    box.began("step", "a")
    assert reader.read().longest >= longest, "a short one changes nothing"
    box.ended()
    for work, model in (("load", "a"), ("step", "b")):
        box.began(work, model)  # type: ignore[arg-type]
        assert reader.read().longest == 0.0
        box.ended()


def test_a_load_that_goes_on(page: int) -> None:
    reader, box = Reader(page), BlackBox(page)
    box.began("load", "a")
    first = reader.read()
    while time.monotonic() == first.since:
        pass
    box.went_on()
    vital = reader.read()
    assert vital.since > first.since
    assert (vital.work, vital.model) == ("load", "a")


def test_beats(page: int) -> None:
    reader, box = Reader(page), BlackBox(page)
    assert reader.read().beat > time.monotonic(), "Python is given time to start"
    box.beat()
    first = reader.read().beat
    assert first <= time.monotonic()
    while time.monotonic() == first:
        pass
    box.beat()
    assert reader.read().beat > first


@pytest.mark.parametrize(
    ("name", "kept"),
    [("", ""), ("a/b c", "a/b c"), ("é" * 100, "é" * 100), ("é" * 5000, "é" * 2048)],
)
def test_names(page: int, name: str, kept: str) -> None:
    reader, box = Reader(page), BlackBox(page)
    box.began("run", name)
    assert reader.read().model == kept


def test_very_many_names(page: int) -> None:
    reader, box = Reader(page), BlackBox(page)
    for n in range(2500):
        box.began("run", f"label {n}")
        assert reader.read().model == f"label {n}"
        box.ended()


def test_read_while_it_is_written_it_never_mixes_two_notes(page: int) -> None:
    reader, box = Reader(page), BlackBox(page)
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            box.began("load", "loaded")
            box.ended()
            box.began("step", "stepped")
            box.ended()

    writer = threading.Thread(target=write)
    writer.start()
    seen = {(vital.work, vital.model) for vital in (reader.read() for _ in range(3000))}
    over.set()
    writer.join()
    assert seen <= {("", ""), ("load", "loaded"), ("step", "stepped")}


def test_it_outlives_the_writer(page: int) -> None:
    reader = Reader(page)
    os.set_inheritable(page, True)
    code = """
import os, signal, sys
from mlx_guarded_llm.worker.blackbox import BlackBox
box = BlackBox(int(sys.argv[1]))
box.began("step", "culprit")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(page)], pass_fds=[page], check=False)
    assert (reader.read().work, reader.read().model) == ("step", "culprit")
