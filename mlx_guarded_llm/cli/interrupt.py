"""Ctrl-C: the first one asks the work to end, the second one ends the program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.pressed = False


@contextmanager
def on_interrupt(act: Callable[[], None]) -> Iterator[Interrupt]:
    """Within this block the first Ctrl-C calls `act` instead of raising.

    So a generation ends at its next token and still has its usage and its guard.
    """
    interrupt = Interrupt()

    def handle(signum: int, frame: FrameType | None) -> None:
        if interrupt.pressed:
            raise KeyboardInterrupt
        interrupt.pressed = True
        act()

    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
