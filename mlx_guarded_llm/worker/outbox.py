"""Messages of the worker on their way to its parent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from .wire import frame


class Outbox:
    """Sends what any thread puts, on that thread; the tokens of a step go together.

    There is no thread of its own: handing the interpreter over to one costs more between
    two tokens than sending does. The socket bounds what is under way. While the parent
    does not read, whoever sends is held, and nothing is lost.

    Args:
        sock: blocking; only this sends on it.
        failed: told of what cannot be sent although the parent is there; it ends the process.
    """

    def __init__(self, sock: socket.socket, *, failed: Callable[[Exception], None]) -> None:
        self._socket = sock
        self._failed = failed
        self._lock = threading.Lock()
        self._held: list[Any] = []
        self._over = False  # nobody reads any more

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
