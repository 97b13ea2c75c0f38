"""What the worker is doing, on a page of memory that outlives it.

The worker writes it. Its parent reads it at any time, also after the worker's death: a process
that is killed has no time to send a message.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from dataclasses import dataclass
from typing import Any, get_args

from ..engine.observer import PREPARERS, Observer, Work

_WORKS: tuple[Work, ...] = get_args(Work)
_NAME = 4096  # bytes kept of a model's name, which may be a path
_START = 30.0  # seconds for Python to start, when disks are cold and processors busy
_KNOWN = 1000  # names remembered at once; there may be many labels of users' functions

_COUNT = struct.Struct("=Q")
_SECONDS = struct.Struct("=d")
_LINE = 64  # bytes of a processor's cache line


class _Place:
    """Where one note lies on the page, and how it is written and read.

    A writer can be stopped or killed at any byte. So there are two copies, and the count of the
    newest whole one is written last, in front of them. Each copy begins with its own count,
    which is written before the rest of it.

    Args:
        at: the place's first byte on the page.
        fields: of a note, in the words of `struct`; the first is "d", seconds.
    """

    def __init__(self, at: int, fields: str) -> None:
        self._form = struct.Struct("=" + fields)
        self._at = at
        self._size = _round_up(_COUNT.size + self._form.size, _LINE)
        self.end = at + _LINE + 2 * self._size

    def write(self, page: mmap.mmap, count: int, *fields: Any) -> None:
        """Write the note number `count`; the numbers begin with 1."""
        at, number = self._copy(count), _COUNT.pack(count)
        _write(page, at, number)
        _write(page, at + _COUNT.size, self._form.pack(*fields))
        _write(page, self._at, number)

    def write_seconds(self, page: mmap.mmap, count: int, seconds: float) -> None:
        """Replace the first field of the newest note, whose number is `count`."""
        _write(page, self._copy(count) + _COUNT.size, _SECONDS.pack(seconds))

    def read(self, page: mmap.mmap) -> tuple[Any, ...]:
        """The fields of the newest whole note; zeros before the first."""
        while True:  # one round, unless two notes were begun since the count was read
            (count,) = _COUNT.unpack_from(page, self._at)
            at = self._copy(count)
            fields = self._form.unpack_from(page, at + _COUNT.size)
            if _COUNT.unpack_from(page, at) == (count,):
                return fields

    def _copy(self, count: int) -> int:
        return self._at + _LINE + count % 2 * self._size


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _write(page: mmap.mmap, at: int, data: bytes) -> None:
    # Not by `pack_into`, which fills the place with zeros before it writes. Whoever read at
    # that moment would take the worker for hung since it was started.
    page[at : at + len(data)] = data


# The heartbeat has its own thread, and so it has its own line: `time.monotonic()` seconds.
# The MLX thread's note: since, longest, work, and a name with its length.
_MLX = _Place(_LINE, f"ddBH{_NAME}s")
_NOTHING = (0, 0, b"")  # work, length of the name, name
# One for each thread that prepares requests: since, and two names with their lengths.
_PREPARING: list[_Place] = []
for _ in range(PREPARERS):
    _PREPARING.append(_Place((_PREPARING or [_MLX])[-1].end, "dH512sH64s"))
SIZE = _round_up(_PREPARING[-1].end, mmap.PAGESIZE)


@dataclass(frozen=True)
class Preparation:
    """A request that is being prepared, beside what the MLX thread does.

    Attributes:
        model: its model.
        request_id: its name in the engine.
        since: `time.monotonic()` seconds.
    """

    model: str
    request_id: str
    since: float


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """What a worker notes about itself. All times are seconds of `time.monotonic()`.

    Attributes:
        heartbeat: when its Python last ran.
        work: what its MLX thread does, "" for nothing.
        model: the model it does it with (the label of a run), or "".
        since: when that began, or last made progress.
        longest: seconds that the longest finished piece of that work with that model took;
            0.0 before the first.
        preparing: the requests that are being prepared.
    """

    heartbeat: float
    work: Work = ""
    model: str = ""
    since: float = 0.0
    longest: float = 0.0
    preparing: tuple[Preparation, ...] = ()


def make_page() -> int:
    """A new page, as a descriptor without a name in any folder."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("mlx-guarded-llm")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, SIZE)
    return descriptor


class StatusWriter(Observer):
    """The worker's end: an `Observer` that notes everything on the page.

    Used by one thread, except for `beat`; each place of `preparing` has a thread of its own.

    Args:
        descriptor: of the page. It can be closed afterwards.
    """

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, SIZE)
        self._longest: dict[tuple[Work, str], float] = {}
        self._current: tuple[Work, str] = ("", "")
        self._failed = False  # what is noted now is what the worker dies of
        self._fields = _NOTHING
        self._known: dict[tuple[Work, str], tuple[int, int, bytes]] = {}
        self._began = time.monotonic()
        self._count = 0
        self._counts = [0] * PREPARERS

    def beat(self) -> None:
        """Show that Python runs."""
        _write(self._page, 0, _SECONDS.pack(time.monotonic()))

    def began(self, work: Work, model: str) -> None:
        """See `Observer.began`."""
        if self._failed:
            return
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
        """See `Observer.went_on`."""
        now = time.monotonic()
        self._finished(now)
        self._began = now
        _MLX.write_seconds(self._page, self._count, now)

    def computed(self) -> None:
        """See `Observer.computed`."""
        self.went_on()

    def failed(self, work: Work, model: str) -> None:
        """See `Observer.failed`."""
        self.began(work, model)
        self._failed = True

    def ended(self) -> None:
        """See `Observer.ended`."""
        if self._failed:
            return
        self._fields = _NOTHING
        self._finished(self._note(0.0))
        self._current = ("", "")

    def preparing(self, place: int, model: str, request_id: str) -> None:
        """See `Observer.preparing`."""
        names = _cut(model, 512), _cut(request_id, 64)
        self._note_place(place, time.monotonic(), *names)

    def prepared(self, place: int) -> None:
        """See `Observer.prepared`."""
        self._note_place(place, 0.0, b"", b"")

    def _note_place(self, place: int, since: float, model: bytes, request_id: bytes) -> None:
        self._counts[place] = count = self._counts[place] + 1
        fields = (since, len(model), model, len(request_id), request_id)
        _PREPARING[place].write(self._page, count, *fields)

    def _finished(self, now: float) -> None:
        seconds = now - self._began
        if seconds > self._longest.get(self._current, 0.0):
            self._longest[self._current] = seconds

    def _note(self, longest: float) -> float:
        now = time.monotonic()
        self._count += 1
        _MLX.write(self._page, self._count, now, longest, *self._fields)
        return now


class StatusReader:
    """The parent's end.

    Args:
        descriptor: of the page. It can be closed afterwards.
    """

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, SIZE)
        now = time.monotonic()
        _write(self._page, 0, _SECONDS.pack(now + _START))
        _MLX.write_seconds(self._page, 0, now)

    def read(self) -> WorkerStatus:
        """What the worker notes about itself, or noted last."""
        since, longest, work, size, name = _MLX.read(self._page)
        (heartbeat,) = _SECONDS.unpack_from(self._page, 0)
        return WorkerStatus(
            heartbeat=heartbeat,
            work=_WORKS[min(work, len(_WORKS) - 1)],
            model=name[:size].decode(errors="replace"),
            since=since,
            longest=longest,
            preparing=tuple(filter(None, map(self._preparation, _PREPARING))),
        )

    def _preparation(self, place: _Place) -> Preparation | None:
        since, size, model, length, name = place.read(self._page)
        if not size and not length:
            return None
        return Preparation(model[:size].decode(), name[:length].decode(), since)

    def close(self) -> None:
        """Give the page back. `read` must not be called afterwards."""
        self._page.close()


def _fields(work: Work, model: str) -> tuple[int, int, bytes]:
    name = _cut(model, _NAME)
    return _WORKS.index(work), len(name), name


def _cut(name: str, size: int) -> bytes:
    """At most `size` bytes; no character is cut in half."""
    return name.encode(errors="replace")[:size].decode(errors="ignore").encode()
