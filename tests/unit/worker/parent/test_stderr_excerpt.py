from __future__ import annotations

import subprocess
import sys

import pytest

from mlx_guarded_llm.worker.parent.stderr_excerpt import stderr_excerpt

METAL = (
    "-[_MTLCommandBuffer addCompletedHandler:]:1011: failed assertion "
    "'Completed handler provided after commit call'"
)


@pytest.mark.parametrize(
    ("stderr", "words"), [("", ""), ("\n \n", ""), ("one\n\ntwo\n", "one\ntwo")]
)
def test_short_texts_are_kept(stderr: str, words: str) -> None:
    assert stderr_excerpt(stderr) == words


def test_the_end_is_kept_of_a_long_one() -> None:
    words = stderr_excerpt("noise\n" * 1000 + METAL, limit=200)
    assert words.endswith(METAL) and words.startswith("…") and len(words) == 200


def test_of_a_dump_of_threads_only_what_tells_why() -> None:
    """A real one, of a process with many threads whose stacks are deep."""
    script = f"""
import faulthandler, os, sys, threading
faulthandler.enable()
def wait(depth):
    wait(depth - 1) if depth else threading.Event().wait()
def die(depth):
    die(depth - 1) if depth else os.abort()
for _ in range(20):
    threading.Thread(target=wait, args=(20,), daemon=True).start()
sys.stderr.write({METAL!r} + chr(10))
sys.stderr.flush()
die(30)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert len(ended.stderr) > 5000
    first, kind, *frames = stderr_excerpt(ended.stderr).splitlines()
    assert first == METAL
    assert kind == "Fatal Python error: Aborted"
    assert len(frames) == 3 and all("in die" in frame for frame in frames)


def test_a_dump_that_was_cut_off_does_no_harm() -> None:
    assert stderr_excerpt("why\nFatal Python error: ") == "why\nFatal Python error:"
    assert stderr_excerpt("Fatal Python error: Aborted\n\nCurrent thread") == (
        "Fatal Python error: Aborted"
    )
