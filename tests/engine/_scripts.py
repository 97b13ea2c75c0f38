"""Scripts of a user, each run in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_PREAMBLE = """\
import asyncio, contextlib, faulthandler, os, signal, sys, threading, time
faulthandler.register(signal.SIGUSR1)  # for `run_script`, should it hang
# A test run in the background of a shell inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
import functools, mlx_guarded_llm
Backend = functools.partial(mlx_guarded_llm.Backend, isolation=os.environ["ISOLATION"])
from mlx_guarded_llm.errors import *
TINY, SCRIPTED, OTHER = sys.argv[1:4]

def spawn(function, daemon=True):
    thread = threading.Thread(target=function, daemon=daemon)
    thread.start()
    return thread

def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)

def happened(backend, kind):
    return any(event.kind == kind for event in backend.events())
"""


@dataclass(frozen=True)
class Ended:
    """How a script ended."""

    code: int
    out: str
    err: str

    @property
    def last_error(self) -> str:
        """The last line of stderr, which of a traceback is the exception."""
        return self.err.strip().splitlines()[-1]

    @property
    def is_clean(self) -> bool:
        """No word of an abort, of the interpreter or of a thread that nobody expected."""
        words = ("terminate called", "Fatal", "Abort", "Exception ignored", "Exception in thread")
        return self.code != -signal.SIGABRT and not any(word in self.err for word in words)


def run_script(
    folder: Path,
    body: str,
    *arguments: str,
    isolation: str = "thread",
    env: Mapping[str, str] | None = None,
    timeout: float = 100.0,
    interpreter: tuple[str, ...] = (),
) -> Ended:
    """Run a script to its end.

    Args:
        folder: where it and its cache are put.
        body: what comes after the imports and helpers of `_PREAMBLE`.
        arguments: the first three are the models TINY, SCRIPTED and OTHER.
        isolation: of its backends; most look inside of the engine, which is then theirs.
        env: more environment variables.
        timeout: seconds after which it counts as hanging.
        interpreter: options of Python.
    """
    file = folder / "script.py"
    file.write_text(_PREAMBLE + textwrap.dedent(body))
    process = subprocess.Popen(
        [sys.executable, *interpreter, str(file), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "MLX_GUARDED_CACHE_DIR": str(folder),
            "ISOLATION": isolation,
            **(env or {}),
        },
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGUSR1)  # where all its threads are
        time.sleep(1.0)
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the script hangs:\n{out}\n{err}") from None
    return Ended(process.returncode, out, err)
