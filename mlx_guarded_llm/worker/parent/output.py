"""What a worker prints: it is passed on, and the end of its stderr is kept."""

from __future__ import annotations

import codecs
import os
import select
import sys
import threading
from typing import TextIO

from .waker import Waker

KEPT = 64 * 1024  # bytes of stderr
_PIECE = 64 * 1024
_LEFT = 32  # pieces read at the end, should somebody else go on writing


class Output:
    """Reads both pipes on a thread of its own, because the parent's stdout may block.

    Args:
        stdout: descriptor of the pipe's reading end; it is closed in the end.
        stderr: the same for the other.
    """

    def __init__(self, stdout: int, stderr: int) -> None:
        self._open = {stderr: "stderr", stdout: "stdout"}
        self._decoders = {d: codecs.getincrementaldecoder("utf-8")("replace") for d in self._open}
        self._kept = b""
        self._over = False
        self._waker = Waker()
        self._have_stderr = threading.Event()
        for descriptor in self._open:
            os.set_blocking(descriptor, False)
        self._thread = threading.Thread(target=self._run, name="mlx-guarded-output", daemon=True)
        self._thread.start()

    @property
    def stderr(self) -> str:
        """The end of what was written there."""
        return self._kept.decode(errors="replace")

    def finish(self, timeout: float) -> None:
        """The worker is gone: read the rest, for at most `timeout` seconds, and end.

        A process that it started may hold the pipes open; nobody waits for that process.
        """
        self._over = True
        self._waker.set()
        self._have_stderr.wait(timeout)

    def abandon(self) -> None:
        """In a forked child: the descriptors are the parent's."""
        for descriptor in tuple(self._open):
            os.close(descriptor)
        self._waker.abandon()

    def _run(self) -> None:
        poll = select.poll()
        for descriptor in (*self._open, self._waker.fileno()):
            poll.register(descriptor, select.POLLIN)
        while self._open and not self._over:
            for descriptor, _ in poll.poll():
                if descriptor in self._open and self._pass_on(descriptor) == b"":
                    poll.unregister(descriptor)
                    self._close(descriptor)
        for descriptor in tuple(self._open):  # stderr comes first: somebody waits for it
            for _ in range(_LEFT):
                if not self._pass_on(descriptor):
                    break
            self._close(descriptor)
        self._have_stderr.set()
        self._waker.close()

    def _pass_on(self, descriptor: int) -> bytes | None:
        """Read a piece. Returns it, empty at the end; None if there is none now."""
        try:
            data = os.read(descriptor, _PIECE)
        except BlockingIOError:
            return None
        name = self._open[descriptor]
        if name == "stderr":
            self._kept = (self._kept + data)[-KEPT:]
        _write(getattr(sys, name), self._decoders[descriptor].decode(data, final=not data))
        return data

    def _close(self, descriptor: int) -> None:
        if self._open.pop(descriptor) == "stderr":
            self._have_stderr.set()
        os.close(descriptor)


def _write(file: TextIO | None, text: str) -> None:
    if file is None or not text:
        return
    try:
        file.write(text)
        file.flush()
    except Exception:
        return  # it is closed, or some object of the user's; what it cannot take is not our failure
