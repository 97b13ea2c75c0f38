"""A child process with a deadline, watched while it works."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_INTERVAL = 0.25  # seconds between looks


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
    """Runs a command to its end; it never outlives this call.

    Args:
        command: program and arguments.
        timeout: seconds after which it is killed.
        env: its environment.
        watch: called a few times a second meanwhile; what it raises kills the child.

    Raises:
        TimeoutError: it was killed at the timeout.
        OSError: it could not be started.
    """
    deadline = time.monotonic() + timeout
    # A file, not a pipe: a child that prints much must not wait for a reader.
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(env)
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
            child.kill()
        output.seek(0)
        lines = output.read().decode(errors="replace").split("\n")
    return Finished(child.returncode, next((x.strip() for x in reversed(lines) if x.strip()), ""))
