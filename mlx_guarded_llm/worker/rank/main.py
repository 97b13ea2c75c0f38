"""The process of a rank: its stdin has the orders, and its stdout the answers."""

from __future__ import annotations

import os
import platform
import select
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from ...engine.importing import import_residents
from ...engine.ranks.orders import Done
from ...engine.thread import mlx_thread
from ...errors import HostUnavailable
from ...memory.budget import default_budget
from ...models.gpus import see_one_gpu
from ...version import __version__
from ..wire import MARK, PROTOCOL, FrameReader, Hello, frame, greeting

_FAILED = 72  # exit status after an order that could not be carried out
_GRACE = 5.0  # seconds to free everything
_SILENCE = 30.0  # seconds without a word of rank 0, which speaks every five


def main() -> NoReturn:
    """Follow until rank 0 is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders, answers = _take_pipes()
    hello = Hello(
        protocol=PROTOCOL,
        version=__version__,
        python=platform.python_version(),
        at=time.monotonic(),
    )
    _write(answers, MARK + greeting(hello))
    rank = _Rank(answers)
    mlx_thread().post(rank.open)
    reader = FrameReader()
    while data := _heard(orders):
        for order in reader.feed(data):
            mlx_thread().post(lambda order=order: rank.do(order))  # type: ignore[misc]
    stopped = threading.Event()
    mlx_thread().post(lambda: rank.stop(stopped))
    stopped.wait(_GRACE)
    os._exit(0)


class _Rank:
    """A follower on the MLX thread. What fails there ends the process."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._follower: Any = None

    def open(self) -> None:
        try:
            see_one_gpu()
            import_residents()
            from ...engine.ranks.follower import Follower
            from ...engine.residency.residents import device

            self._follower = Follower(self._answer, socket.gethostname())
            done = Done(nbytes=default_budget(device()))
        except BaseException as error:
            traceback.print_exc()
            text = (
                f"MLX cannot be used on {socket.gethostname()} ({type(error).__name__}: {error})."
            )
            done = Done(error=HostUnavailable(text))
        self._answer(done)

    def do(self, order: Any) -> None:
        try:
            self._follower.do(order)
        except BaseException:  # the others have gone on without this rank
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(_FAILED)

    def stop(self, stopped: threading.Event) -> None:
        try:
            if self._follower is not None:
                self._follower.stop()
        finally:
            stopped.set()

    def _answer(self, done: Done) -> None:
        _write(self._answers, frame([done]))


def _heard(orders: int) -> bytes:
    """What rank 0 says next; nothing if it has hung up, or been silent for too long."""
    if not select.select([orders], [], [], _SILENCE)[0]:
        sys.stderr.write(f"nothing was heard of rank 0 for {_SILENCE:.0f} s\n")
        return b""
    return os.read(orders, 256 * 1024)


def _take_pipes() -> tuple[int, int]:
    """Stdin and stdout, under other numbers: nothing else shall read or write there."""
    orders, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return orders, answers


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except BrokenPipeError:
        os._exit(0)  # rank 0 is gone
