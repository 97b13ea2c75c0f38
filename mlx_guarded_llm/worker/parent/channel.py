"""The parent's end of the socket."""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from typing import Any

from ..wire import FrameReader, frame
from .waker import Waker

_PIECE = 256 * 1024
# Writing to a worker that is gone must not kill the parent, not even where SIGPIPE has its
# default action: Linux needs the first of these, macOS the second.
_NO_SIGPIPE = getattr(socket, "MSG_NOSIGNAL", 0)
_SO_NOSIGPIPE = getattr(socket, "SO_NOSIGPIPE", None)


class Channel:
    """Messages to a worker, from any thread, and from it, on one thread.

    `put` never blocks: what the socket does not take at once waits. The number of requests that
    may be under way bounds it.

    Args:
        sock: the channel owns it from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)
        if _SO_NOSIGPIPE is not None:
            sock.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
        self._lock = threading.Lock()
        self._waiting: deque[memoryview] = deque()
        self._reader = FrameReader()
        self._waker = Waker()
        self._poll = select.poll()
        self._poll.register(self._waker, select.POLLIN)
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
                    self._waker.set()

    def wake(self) -> None:
        """Have `receive` come back. From any thread."""
        self._waker.set()

    def receive(self, timeout: float) -> list[Any] | None:
        """The messages of the next read, within `timeout` seconds; None if nothing comes.

        Raises:
            WireBroken: it is no message of a worker of ours.
        """
        if self._waiting and not self.over:
            self._poll.modify(self._socket, select.POLLIN | select.POLLOUT)
        messages = None
        for descriptor, event in self._poll.poll(timeout * 1000):
            if descriptor == self._waker.fileno():
                self._waker.clear()
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
        self._waker.close()

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
