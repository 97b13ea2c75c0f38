"""Waiting for something, with the test's own timeout as the bound."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)
