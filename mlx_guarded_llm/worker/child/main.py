"""The worker's process: signals, limits and its end. `serving` does the rest."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

from ..status_page import StatusWriter
from .orphan import die_with, orphaned

_BEAT = 0.5  # seconds
_ORPHAN = 5.0  # seconds to stop when the parent is gone
# Seconds; Python's default is 5 ms. While the MLX thread builds a graph, the threads that read
# and prepare new requests wait this long for their turn, several times for each request.
_SWITCH = 0.001
_OPEN_FILES = 4096


class _Terminated(BaseException):
    """SIGTERM came."""


def main(socket_fd: int, page: int, parent: int) -> NoReturn:
    """Be a worker until the parent hangs up.

    Args:
        socket_fd: descriptor of the socket to the parent.
        page: descriptor of the page for `StatusWriter`.
        parent: its process id.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the spawning thread's was inherited
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    for descriptor in (socket_fd, page):
        os.set_inheritable(descriptor, False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    sys.setswitchinterval(_SWITCH)
    _raise_open_files()
    writer = StatusWriter(page)
    os.close(page)
    threading.Thread(target=_beat, args=(writer,), name="mlx-guarded-beat", daemon=True).start()
    # Late: this takes a while, and the parent is to see a heartbeat meanwhile.
    from .serving import Serving

    worker = Serving(socket.socket(fileno=socket_fd), writer)
    signal_number = 0
    try:
        signal.signal(signal.SIGTERM, _terminate)
        worker.serve()
    except _Terminated:
        signal_number = signal.SIGTERM
        worker.unasked = True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if orphaned(parent):
        _leave_after(_ORPHAN)
    worker.stop()
    if signal_number:  # whoever waits for this process is to see what ended it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal_number)
    os._exit(worker.exit_code)


def _raise_open_files() -> None:
    """A model may have very many files. A low hard limit stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _beat(writer: StatusWriter) -> None:
    while True:
        writer.beat()
        time.sleep(_BEAT)


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def _leave_after(seconds: float) -> None:
    """End the process even if something hangs: no parent is there to do it."""

    def leave() -> None:
        time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=leave, name="mlx-guarded-orphan", daemon=True).start()
