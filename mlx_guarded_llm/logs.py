"""The loggers of this package, whose handlers never run on its own threads.

Handlers and filters belong to the application: they may block, raise, or call a backend. So
what a thread of ours logs is handed to a thread that does nothing else, as a `QueueHandler`
does it. What the application's own threads log is handled at once.
"""

from __future__ import annotations

import atexit
import logging
import threading

from .background import Background

NAME = "mlx_guarded_llm"
MOST = 10_000  # records that wait
PATIENCE = 1.0  # seconds for handlers, when a backend is closed and at exit

THREAD_PREFIX = "mlx-guarded-"  # how the names of our threads begin
_THREAD = "mlx-guarded-log"
_formatter = logging.Formatter()

# A library leaves it to the application whether and where its log is shown.
logging.getLogger(NAME).addHandler(logging.NullHandler())


def get_logger(subject: str = "") -> logging.Logger:
    """The logger "mlx_guarded_llm.SUBJECT"."""
    logger = logging.getLogger(f"{NAME}.{subject}" if subject else NAME)
    logger.addFilter(_handover.takes)  # adding it twice has no effect
    return logger


def flush(timeout: float = PATIENCE) -> bool:
    """Wait until everything logged before has been handled, `timeout` seconds at most."""
    return _handover.flush(timeout)


def handle_at_once() -> None:
    """From now on records are handled on the thread that logs them: the handlers are our own."""
    _handover.used = False


class _Handover:
    """Handles records on a thread of its own, which is started with the first one."""

    def __init__(self) -> None:
        self.used = True
        self._dropped = 0
        self._thread = Background(_THREAD, idle=None, failed=lambda error: None)

    def takes(self, record: logging.LogRecord) -> bool:
        """The filter of our loggers. Returns whether the record is handled here and now."""
        thread = threading.current_thread().name
        if not self.used or not thread.startswith(THREAD_PREFIX) or thread == _THREAD:
            return True
        try:
            whole = _whole(record)
            self._dropped += not self._thread.put(lambda: self._handle(whole), MOST)
        except Exception:
            self._dropped += 1  # a bad record must not stop the thread that logs it
        return False

    def flush(self, timeout: float) -> bool:
        """See the function."""
        return self._thread.flush(timeout)

    def _handle(self, record: logging.LogRecord) -> None:
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            get_logger().warning("%d records were dropped: a handler is slow", dropped)
        logging.getLogger(record.name).handle(record)


def _whole(record: logging.LogRecord) -> logging.LogRecord:
    """The record without anything that may change later, or must not leave its thread."""
    record.message = record.msg = record.getMessage()
    record.args = None
    if record.exc_info:  # its frames may hold arrays
        record.exc_text = record.exc_text or _formatter.formatException(record.exc_info)
        record.exc_info = None
    return record


_handover = _Handover()
atexit.register(flush)
