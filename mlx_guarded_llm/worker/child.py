"""The worker's process: what it is to signals and to its parent. The rest is `serving`."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

from .blackbox import BlackBox
from .orphan import die_with, orphaned

_BEAT = 0.5  # seconds
_ORPHAN = 5.0  # seconds for a stop that nobody waits for
# Seconds, of Python's usual 5 ms: while the MLX thread builds a graph, the threads that read
# and prepare new requests wait so long for their turn, several times for each of them.
_SWITCH = 0.001


class _Terminated(BaseException):
    """SIGTERM came."""


def main(socket_fd: int, page: int, parent: int) -> NoReturn:
    """Be a worker until the parent hangs up.

    Args:
        socket_fd: descriptor of the socket to the parent.
        page: descriptor of the page for `BlackBox`.
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
    box = BlackBox(page)
    os.close(page)
    threading.Thread(target=_beat, args=(box,), name="mlx-guarded-beat", daemon=True).start()
    # Late: it takes a while, of which the parent is to see that it goes on.
    from .serving import Serving

    worker = Serving(socket.socket(fileno=socket_fd), box)
    status = 0
    try:
        signal.signal(signal.SIGTERM, _terminate)
        worker.serve()
    except _Terminated:
        status = -signal.SIGTERM
        worker.unasked = True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if orphaned(parent):
        _leave_after(_ORPHAN)
    worker.stop()
    if status < 0:  # whoever waits for this process is to see what ended it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(worker.status)


def _beat(box: BlackBox) -> None:
    while True:
        box.beat()
        time.sleep(_BEAT)


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def _leave_after(seconds: float) -> None:
    """Whatever hangs: nobody is there to end this process."""

    def leave() -> None:
        time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=leave, name="mlx-guarded-orphan", daemon=True).start()
