"""The parent's end of the socket."""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from typing import Any

from .wake import Wake
from .wire import FrameReader, frame

_PIECE = 256 * 1024
# A worker that is gone must not cost the parent its life, not even where it has SIGPIPE
# do its worst: Linux wants the one, macOS the other.
_NO_SIGPIPE = getattr(socket, "MSG_NOSIGNAL", 0)
_SO_NOSIGPIPE = getattr(socket, "SO_NOSIGPIPE", None)


class Channel:
    """Messages to a worker, from any thread, and from it, to one.

    `put` never blocks: what the socket does not take at once waits. What bounds it is the
    number of requests that may be under way.

    Args:
        sock: it is this one's from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)
        if _SO_NOSIGPIPE is not None:
            sock.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
        self._lock = threading.Lock()
        self._waiting: deque[memoryview] = deque()
        self._reader = FrameReader()
        self._wake = Wake()
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._poll.register(sock, select.POLLIN)
        self.over = False

    def put(self, message: Any) -> None:
        """Send a message. From any thread.

        Raises:
            Exception: it cannot be pickled, or is too large; nothing was sent.
        """
        data = memoryview(frame([message]))
        with self._lock:
            self._waiting.append(data)
            if len(self._waiting) == 1:
                self._send()
                if self._waiting:
                    self._wake.set()

    def wake(self) -> None:
        """Have `receive` come back. From any thread."""
        self._wake.set()

    def receive(self, timeout: float) -> list[Any] | None:
        """What comes within so many seconds; None if nothing does, or never will again.

        Raises:
            WireBroken: it is nothing that a worker of ours says.
        """
        if self._waiting and not self.over:
            self._poll.modify(self._socket, select.POLLIN | select.POLLOUT)
        messages = None
        for descriptor, event in self._poll.poll(timeout * 1000):
            if descriptor == self._wake.fileno():
                self._wake.clear()
                continue
            if event & select.POLLOUT:
                with self._lock:
                    self._send()
                    if not self._waiting:
                        self._poll.modify(self._socket, select.POLLIN)
            if event & ~select.POLLOUT:
                messages = self._receive()
        return messages

    def close(self) -> None:
        """The worker is gone."""
        with self._lock:
            self._waiting.clear()
            self._socket.close()
        self._wake.close()

    def _receive(self) -> list[Any] | None:
        try:
            data = self._socket.recv(_PIECE)
        except BlockingIOError:
            return None
        except OSError:  # it died with something unread
            data = b""
        if data:
            return self._reader.feed(data)
        self.over = True
        self._poll.unregister(self._socket)
        return None

    def _send(self) -> None:
        try:
            while self._waiting:
                sent = self._socket.send(self._waiting[0], _NO_SIGPIPE)
                self._waiting[0] = self._waiting[0][sent:]
                if not self._waiting[0]:
                    self._waiting.popleft()
        except BlockingIOError:
            pass
        except OSError:  # the worker is gone, which its process tells
            self._waiting.clear()
