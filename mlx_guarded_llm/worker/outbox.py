"""Messages of the worker on their way to its parent."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

from .wire import frame

LIMIT = 1024  # messages; some thirty tokens of as many answers
_TOGETHER = 256  # messages in a frame at most


class Outbox:
    """One thread sends what all others put, as much as there is at once.

    Args:
        sock: blocking; only this sends on it.
        limit: messages. While as many wait, the threads that put more are held.
        failed: told of what cannot be sent although the parent is there; it should end
            the process.
    """

    def __init__(
        self, sock: socket.socket, *, failed: Callable[[Exception], None], limit: int = LIMIT
    ) -> None:
        self._socket = sock
        self._failed = failed
        self._limit = limit
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._over = False  # nobody reads any more
        self._thread = threading.Thread(target=self._run, name="mlx-guarded-outbox", daemon=True)
        self._thread.start()

    def put(self, message: Any) -> None:
        """Send a message soon, in order with this thread's others. Waits while there is no room."""
        self._queue.put(message)
        if self._queue.qsize() > self._limit:
            with self._room:
                self._room.wait_for(lambda: self._over or self._queue.qsize() <= self._limit)

    def close(self, timeout: float) -> None:
        """Send what was put so far, in so many seconds at most; nothing more is taken."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while messages := self._take():
                self._socket.sendall(frame(messages))
                if self._queue.qsize() + len(messages) > self._limit:
                    with self._room:
                        self._room.notify_all()
        except OSError:
            pass  # the parent is gone; whoever reads sees it too
        except Exception as error:
            self._failed(error)
        finally:
            with self._room:
                self._over = True
                self._room.notify_all()

    def _take(self) -> list[Any]:
        """Everything there is, waiting for the first; empty at the end."""
        messages = [self._queue.get()]
        try:
            while messages[-1] is not None and len(messages) < _TOGETHER:
                messages.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        if messages[-1] is None:
            self._queue.put(None)  # seen again after these
            messages.pop()
        return messages
