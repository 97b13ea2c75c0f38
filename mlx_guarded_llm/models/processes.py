"""A child process with a timeout, watched while it runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_INTERVAL = 0.25  # seconds between checks
_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")


@dataclass(frozen=True)
class Finished:
    """How a child ended.

    Attributes:
        returncode: its exit status, or minus the signal that ended it.
        last_line: the last line it printed, or "".
    """

    returncode: int
    last_line: str


def run_watched(
    command: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str],
    watch: Callable[[], None] | None = None,
) -> Finished:
    """Run a command to its end. It outlives neither this call nor this process.

    Args:
        command: program and arguments.
        timeout: seconds after which it is killed.
        env: its environment.
        watch: called a few times a second; an exception from it kills the child.

    Raises:
        TimeoutError: it was killed at the timeout.
        OSError: it could not be started.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"there is no program {command[0]}")
    wrapped = [sys.executable, "-I", str(_DIE_WITH_PARENT), str(os.getpid()), *command]
    deadline = time.monotonic() + timeout
    # A file, not a pipe, so that a child that prints a lot does not wait for a reader.
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            wrapped,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(env),
            process_group=0,
        ) as child,
    ):
        try:
            while child.poll() is None:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it ran for more than {timeout:.0f} s")
                if watch:
                    watch()
                try:
                    child.wait(_INTERVAL)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
        output.seek(0)
        lines = output.read().decode(errors="replace").split("\n")
    return Finished(child.returncode, next((x.strip() for x in reversed(lines) if x.strip()), ""))
