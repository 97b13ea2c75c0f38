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

# The heartbeat has a place of its own because it has a thread of its own. The rest is written
# as one note: its last field is written last, and equals its first field unless the writer
# was in the middle of it.
_BEAT = struct.Struct("=d")
_NOTE = struct.Struct(f"=QddBH{_NAME}sQ")
_NOTE_AT = 64
_END = struct.Struct("=Q")
_SINCE_AT = _NOTE_AT + 8
_NOTHING = (0, 0, b"")  # work, length of the name, name
# One for each thread that prepares requests: count, since, and two names with their lengths.
_PLACE = struct.Struct("=QdH512sH64sQ")
_PLACES_AT = -(-(_NOTE_AT + _NOTE.size) // 64) * 64
_PLACE_SIZE = -(-_PLACE.size // 64) * 64
SIZE = -(-(_PLACES_AT + PREPARERS * _PLACE_SIZE) // mmap.PAGESIZE) * mmap.PAGESIZE


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
        self._write(0, _BEAT.pack(time.monotonic()))

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
        self._write(_SINCE_AT, _BEAT.pack(now))

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
        at = _PLACES_AT + place * _PLACE_SIZE
        fields = (count, since, len(model), model, len(request_id), request_id, count)
        self._write_note(at, _PLACE.pack(*fields))

    def _finished(self, now: float) -> None:
        seconds = now - self._began
        if seconds > self._longest.get(self._current, 0.0):
            self._longest[self._current] = seconds

    def _note(self, longest: float) -> float:
        now = time.monotonic()
        self._count = count = self._count + 1
        work, size, name = self._fields
        self._write_note(_NOTE_AT, _NOTE.pack(count, now, longest, work, size, name, count))
        return now

    def _write_note(self, at: int, data: bytes) -> None:
        """Write a note whose first and last fields are its count, in their order."""
        edge = _END.size
        self._write(at, data[:edge])
        self._write(at + edge, data[edge:-edge])
        self._write(at + len(data) - edge, data[-edge:])

    def _write(self, at: int, data: bytes) -> None:
        # Not by `pack_into`, which fills the place with zeros before it writes. Whoever read at
        # that moment would take the worker for hung since it was started.
        self._page[at : at + len(data)] = data


class StatusReader:
    """The parent's end.

    Args:
        descriptor: of the page. It can be closed afterwards.
    """

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, SIZE)
        now = time.monotonic()
        _BEAT.pack_into(self._page, 0, now + _START)
        _BEAT.pack_into(self._page, _SINCE_AT, now)

    def read(self) -> WorkerStatus:
        """What the worker notes about itself, or noted last."""
        _, since, longest, work, size, name, _ = self._read_note(_NOTE, _NOTE_AT)
        (heartbeat,) = _BEAT.unpack_from(self._page, 0)
        return WorkerStatus(
            heartbeat=heartbeat,
            work=_WORKS[min(work, len(_WORKS) - 1)],
            model=name[:size].decode(errors="replace"),
            since=since,
            longest=longest,
            preparing=tuple(filter(None, map(self._read_place, range(PREPARERS)))),
        )

    def _read_place(self, place: int) -> Preparation | None:
        at = _PLACES_AT + place * _PLACE_SIZE
        _, since, size, model, length, name, _ = self._read_note(_PLACE, at)
        if not size and not length:
            return None
        return Preparation(model[:size].decode(), name[:length].decode(), since)

    def _read_note(self, form: struct.Struct, at: int) -> tuple[Any, ...]:
        """The fields of a note. Its last count is read first: no write has begun since then."""
        for _ in range(100):  # it may be writing; or it died in the middle of it
            end = _END.unpack_from(self._page, at + form.size - _END.size)
            fields = form.unpack_from(self._page, at)
            if _END.unpack_from(self._page, at) == end:
                break
        return fields

    def close(self) -> None:
        """Give the page back. `read` must not be called afterwards."""
        self._page.close()


def _fields(work: Work, model: str) -> tuple[int, int, bytes]:
    name = _cut(model, _NAME)
    return _WORKS.index(work), len(name), name


def _cut(name: str, size: int) -> bytes:
    """At most `size` bytes; no character is cut in half."""
    return name.encode(errors="replace")[:size].decode(errors="ignore").encode()
