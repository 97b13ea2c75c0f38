"""Waiting for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

_PAUSE = 0.05


def within(seconds: float, done: Callable[[], bool]) -> bool:
    """Wait until something is done. Returns whether that took no longer than `seconds`."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(_PAUSE)
    return True
