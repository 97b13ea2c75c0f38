"""Starting a server that goes on when the command that starts it has ended."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import typer
from rich.text import Text

from ..backend import shared_server
from ..errors import ServerUnavailable
from ..worker.parent.spawn import python_command
from .console import out, say

STARTING = 120.0  # seconds; a busy machine takes long to import everything
ASKING = 5.0  # seconds for one look at /health
_PAUSE = 0.05


def start(flags: Sequence[str], log: Path) -> None:
    """Start the shared server with these flags of `serve`, and wait until it answers.

    Args:
        flags: of its command.
        log: where its log will be, to be told.

    Raises:
        ServerAlreadyRunning: one runs.
        ServerUnavailable: it did not answer in time.
        typer.Exit: it ended; what it said was passed on.
    """
    there = shared_server.running()
    if there is not None:
        raise shared_server.already_running(there)
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [*python_command(), "-m", "mlx_guarded_llm", "serve", *flags],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=errors,
            start_new_session=True,  # neither Ctrl-C here nor the end of the terminal reaches it
        )
        try:
            _wait(child)
        except BaseException:
            child.kill()
            child.wait()
            _pass_on(errors, sys.stderr)
            raise
        _pass_on(errors, sys.stderr)
        if child.returncode is not None:
            raise typer.Exit(child.returncode if child.returncode > 0 else 1)
        child.returncode = 0  # it goes on without us, of which Popen would warn
        _pass_on(said, sys.stdout)
    say(out(), Text(f"Process {child.pid}; its log: {log}; `mlx-guarded stop` ends it."))


def _wait(child: subprocess.Popen[bytes]) -> None:
    """Until it answers or has ended."""
    end = time.monotonic() + STARTING
    while child.poll() is None:
        entry = shared_server.running()
        if entry is not None and (entry.pid, entry.state) == (child.pid, "serving") and _answers():
            return
        if time.monotonic() > end:
            raise ServerUnavailable(
                f"the server did not answer within {STARTING:g} s, and was ended.",
                hint="`mlx-guarded serve --share` shows what it does.",
            )
        time.sleep(_PAUSE)


def _answers() -> bool:
    """Whether /health says anything."""
    connection = http.client.HTTPConnection("localhost", timeout=ASKING)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection.sock:
            connection.sock.settimeout(ASKING)
            connection.sock.connect(str(shared_server.socket_path()))
            connection.request("GET", "/health")
            connection.getresponse().read()
        return True
    except (OSError, http.client.HTTPException):
        return False


def _pass_on(written: IO[bytes], to: IO[str]) -> None:
    written.seek(0)
    to.write(written.read().decode(errors="replace"))
    to.flush()
