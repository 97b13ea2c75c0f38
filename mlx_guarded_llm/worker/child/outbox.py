"""Messages of the worker on their way to its parent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from ..wire import frame


class Outbox:
    """Sends each message on the thread that puts it; the tokens of a step go together.

    It has no thread of its own: between two tokens, switching to one costs more than sending
    does. The socket bounds what is under way. While the parent does not read, the sender
    blocks, and nothing is lost.

    Args:
        sock: blocking; only this sends on it.
        failed: called when something cannot be sent although the parent is there; it ends the
            process.
    """

    def __init__(self, sock: socket.socket, *, failed: Callable[[Exception], None]) -> None:
        self._socket = sock
        self._failed = failed
        self._lock = threading.Lock()
        self._held: list[Any] = []
        self._over = False  # the parent does not read any more

    def hold(self, message: Any) -> None:
        """Send a message with the next `put` or `flush`."""
        with self._lock:
            self._held.append(message)

    def put(self, message: Any) -> None:
        """Send a message now, behind what is held."""
        with self._lock:
            self._held.append(message)
            self._send()

    def flush(self) -> None:
        """Send what is held."""
        if self._held:
            with self._lock:
                self._send()

    def _send(self) -> None:
        messages, self._held = self._held, []
        if self._over:
            return
        try:
            self._socket.sendall(frame(messages))
        except ConnectionError:  # the parent is gone; whoever reads sees it too
            self._over = True
        except Exception as error:
            self._failed(error)
