"""Waking a thread that waits for descriptors."""

from __future__ import annotations

import os
import threading


class Waker:
    """A pipe with a thread at its end. `set` may be called from any thread, at any time."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._lock = threading.Lock()  # a closed descriptor's number may be somebody else's
        self._closed = False

    def fileno(self) -> int:
        """To be polled: readable once `set`."""
        return self._read

    def set(self) -> None:
        """Wake the thread."""
        with self._lock:
            if not self._closed:
                try:
                    os.write(self._write, b"!")
                except BlockingIOError:
                    pass  # it has been woken often enough

    def clear(self) -> None:
        """It is awake."""
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """No thread waits any more."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """As `close`; in a forked child, where the lock may be held for ever."""
        if not self._closed:
            self._closed = True
            os.close(self._read)
            os.close(self._write)
