"""What the worker is doing, on a page of memory that outlives it.

The worker writes, its parent reads whenever it likes, after the worker's death too. No
message could tell that much: whoever is killed has no time to send one.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from typing import get_args

from ..engine.pulse import Work
from .watchdog import Vital

SIZE = 2 * mmap.PAGESIZE
_WORKS: tuple[Work, ...] = get_args(Work)
_NAME = 4096  # bytes kept of a model's name, which may be a path
_START = 30.0  # seconds for Python to start, when disks are cold and processors busy
_KNOWN = 1000  # names remembered at once; labels of runs may be many

# The beat has a place of its own, for it has a thread of its own. The rest is written as
# one: what it ends with was written last, and equals what it begins with unless the
# writer was in the middle of it.
_BEAT = struct.Struct("=d")
_NOTE = struct.Struct(f"=QddBH{_NAME}sQ")
_NOTE_AT = 64
_END = struct.Struct("=Q")
_END_AT = _NOTE_AT + _NOTE.size - _END.size
_SINCE_AT = _NOTE_AT + 8
_NOTHING = (0, 0, b"")  # work, length of the name, name


def make_page() -> int:
    """A new page, as a descriptor without a name in any folder."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("mlx-guarded-llm")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, SIZE)
    return descriptor


class BlackBox:
    """The worker's end: a `Pulse` that notes everything on the page.

    Used by one thread, less `beat`.

    Args:
        descriptor: of the page. It can be closed afterwards.
    """

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, SIZE)
        self._longest: dict[tuple[Work, str], float] = {}
        self._current: tuple[Work, str] = ("", "")
        self._fields = _NOTHING
        self._known: dict[tuple[Work, str], tuple[int, int, bytes]] = {}
        self._began = time.monotonic()
        self._count = 0

    def beat(self) -> None:
        """Show that Python runs."""
        _BEAT.pack_into(self._page, 0, time.monotonic())

    def began(self, work: Work, model: str) -> None:
        """See `Pulse.began`."""
        self._current = current = (work, model)
        fields = self._known.get(current)
        if fields is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
                self._longest.clear()
            fields = self._known[current] = _fields(work, model)
        self._fields = fields
        self._began = self._note(self._longest.get(current, 0.0))

    def went_on(self) -> None:
        """See `Pulse.went_on`."""
        now = time.monotonic()
        self._finished(now)
        self._began = now
        _BEAT.pack_into(self._page, _SINCE_AT, now)

    def ended(self) -> None:
        """See `Pulse.ended`."""
        self._fields = _NOTHING
        self._finished(self._note(0.0))
        self._current = ("", "")

    def _finished(self, now: float) -> None:
        seconds = now - self._began
        if seconds > self._longest.get(self._current, 0.0):
            self._longest[self._current] = seconds

    def _note(self, longest: float) -> float:
        now = time.monotonic()
        self._count = count = self._count + 1
        work, size, name = self._fields
        _NOTE.pack_into(self._page, _NOTE_AT, count, now, longest, work, size, name, count)
        return now


class Reader:
    """The parent's end.

    Args:
        descriptor: of the page. It can be closed afterwards.
    """

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, SIZE)
        now = time.monotonic()
        _BEAT.pack_into(self._page, 0, now + _START)
        _BEAT.pack_into(self._page, _SINCE_AT, now)

    def read(self) -> Vital:
        """What the worker shows of itself, or last showed."""
        for _ in range(100):  # it may be writing; or it died in the middle of it
            (end,) = _END.unpack_from(self._page, _END_AT)
            begin, since, longest, work, size, name, _ = _NOTE.unpack_from(self._page, _NOTE_AT)
            if begin == end and (begin,) == _END.unpack_from(self._page, _NOTE_AT):
                break
        (beat,) = _BEAT.unpack_from(self._page, 0)
        return Vital(
            beat=beat,
            work=_WORKS[min(work, len(_WORKS) - 1)],
            model=name[:size].decode(errors="replace"),
            since=since,
            longest=longest,
        )

    def close(self) -> None:
        """Give the page back. `read` must not be called afterwards."""
        self._page.close()


def _fields(work: Work, model: str) -> tuple[int, int, bytes]:
    name = model.encode(errors="replace")[:_NAME]
    name = name.decode(errors="ignore").encode()  # no character is cut in half
    return _WORKS.index(work), len(name), name
