"""Disk work that nobody waits for, done in order on a thread of its own.

The dispatcher must not wait for a disk, nor for a lock that another process holds.
"""

from __future__ import annotations

import atexit

from .background import Background, Work
from .logs import THREAD_PREFIX, get_logger

logger = get_logger()

MOST = 1_000  # pieces of work that wait
IDLE = 0.5  # seconds without work after which the thread ends
PATIENCE = 3.0  # seconds for the work that waits, when a backend is closed and at exit


def write_soon(work: Work) -> None:
    """Have `work` done soon. This never blocks or raises; what `work` raises is logged."""
    if not _writer.put(work, MOST):
        logger.warning("the disk is slow: something is not written")


def flush(timeout: float = PATIENCE) -> bool:
    """Wait until everything asked for before is done. Returns whether it is."""
    return _writer.flush(timeout)


def _log_failure(error: BaseException) -> None:
    logger.error("something could not be written", exc_info=error)


_writer = Background(f"{THREAD_PREFIX}writer", idle=IDLE, failed=_log_failure)
atexit.register(flush)
