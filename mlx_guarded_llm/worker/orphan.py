"""A worker does not outlive its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, where it can.

    Elsewhere the end of the socket tells. Linux means the thread that started us.

    Raises:
        SystemExit: the parent is gone already, or something stands between.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if orphaned(parent):
        sys.exit(f"the worker's parent should be {parent} and is {os.getppid()}.")


def orphaned(parent: int) -> bool:
    """Whether the process of that id is not, or no more, our parent."""
    return os.getppid() != parent
