"""A worker does not outlive its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, on Linux.

    Elsewhere the end of the socket tells it. On Linux "parent" is the thread that started us.

    Raises:
        SystemExit: the parent is gone already, or there is a process in between.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if orphaned(parent):
        sys.exit(f"the worker's parent should be {parent} and is {os.getppid()}.")


def orphaned(parent: int) -> bool:
    """Whether the process with this id is not our parent, or no longer."""
    return os.getppid() != parent
