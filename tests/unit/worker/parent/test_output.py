"""What a worker prints: passed on, and the last of its stderr kept."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import pytest

from mlx_guarded_llm.worker.parent.output import KEPT, Output

PATIENCE = 60.0  # seconds


class Child:
    """The writing ends, as a worker has them."""

    def __init__(self) -> None:
        self.read_out, self.out = os.pipe()
        self.read_err, self.err = os.pipe()

    def exit(self) -> None:
        for descriptor in (self.out, self.err):
            if descriptor >= 0:
                os.close(descriptor)
        self.out = self.err = -1


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.exit()


@contextmanager
def streams() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Ours, in a test: pytest changes them between it and its fixtures."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        yield out, err


def joined(output: Output) -> None:
    output._thread.join(PATIENCE)
    assert not output._thread.is_alive()


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_it_goes_to_ours(child: Child) -> None:
    with streams() as (out, err):
        output = Output(child.read_out, child.read_err)
        os.write(child.out, "grüße\n".encode()[:3])  # half a character
        os.write(child.out, "grüße\n".encode()[3:])
        os.write(child.err, b"warning\n")
        child.exit()
        joined(output)
    assert (out.getvalue(), err.getvalue()) == ("grüße\n", "warning\n")
    assert output.stderr == "warning\n"
    output.finish(PATIENCE)
    assert not is_open(child.read_out) and not is_open(child.read_err)


def test_the_last_of_much(child: Child) -> None:
    with streams() as (_, err):
        output = Output(child.read_out, child.read_err)
        for n in range(100):
            os.write(child.err, f"{n:03}".encode() + b"x" * 4096 + b"\n")
        child.exit()
        joined(output)
    assert len(output.stderr) == KEPT
    assert output.stderr.endswith("x\n") and "\n099x" in output.stderr
    assert len(err.getvalue()) == 100 * 4100


def test_somebody_else_holds_the_pipes(child: Child) -> None:
    with streams() as (_, err):
        output = Output(child.read_out, child.read_err)
        os.write(child.err, b"last words\n")
        output.finish(PATIENCE)
        joined(output)
    assert output.stderr == err.getvalue() == "last words\n"
    assert not is_open(child.read_out)


def test_our_stdout_blocks(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Blocks(io.StringIO):
        def write(self, text: str) -> int:
            inside.set()
            go_on.wait(PATIENCE)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Blocks())
    output = Output(child.read_out, child.read_err)
    os.write(child.out, b"text\n")
    assert inside.wait(PATIENCE)
    output.finish(0.01)  # and comes back
    go_on.set()
    joined(output)


@pytest.mark.parametrize("stream", [None, "closed"])
def test_we_have_no_stderr(
    child: Child, monkeypatch: pytest.MonkeyPatch, stream: str | None
) -> None:
    ours = io.StringIO()
    ours.close()
    monkeypatch.setattr(sys, "stderr", ours if stream else None)
    output = Output(child.read_out, child.read_err)
    os.write(child.err, b"last words\n")
    child.exit()
    joined(output)
    assert output.stderr == "last words\n"
