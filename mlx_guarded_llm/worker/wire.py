"""Frames on the socket between parent and worker, and how the two introduce themselves.

A frame is a length (8 bytes), and that many bytes of a pickled list of messages. Both ends
must be the same version. The first frame makes sure of that: it holds plain values only, so
that any version can read it.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..engine.protocol import EngineOptions
from ..errors import EngineDied

PROTOCOL = 5  # of this module and `engine.protocol`; raised when either changes
MARK = b"\0mlx-guarded-rank\0"  # before the first frame of another rank, which a shell may start
MAX_FRAME = 4 * 1024**3  # bytes; real messages are far smaller, nonsense is mostly larger

_HEADER = struct.Struct("!Q")


class WireBroken(EngineDied):
    """What came over the socket cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """The worker's first message, sent before it imports MLX.

    Attributes:
        protocol: its `PROTOCOL`.
        version: of the library.
        python: of the interpreter, such as "3.11.9".
        at: when it sent this, seconds of `time.monotonic()`.
    """

    protocol: int
    version: str
    python: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """The parent's first message: how the engine is to work.

    Attributes:
        sys_path: the parent's; entries that the worker's lacks are added to its end.
        log_level: the lowest level of records that the parent wants.
    """

    options: EngineOptions
    sys_path: tuple[str, ...]
    log_level: int


@dataclass(frozen=True)
class Imported:
    """From the worker: MLX is imported, and how long that took."""

    seconds: float


@dataclass(frozen=True)
class Joining:
    """From the worker: MLX connects it with other ranks, and holds Python's lock meanwhile.

    So no thread of the worker notices the end of a rank, and the parent looks after them.

    Attributes:
        ranks: the process id on this machine, and the name, of each; none once they are connected.
    """

    ranks: tuple[tuple[int, str], ...]


@dataclass(frozen=True, kw_only=True)
class Logged:
    """From the worker: a record that the library logged there."""

    name: str
    level: int
    text: str


def greeting(hello: Hello) -> bytes:
    """The first frame of a worker."""
    return frame([asdict(hello)])


def read_greeting(message: Any) -> Hello:
    """Read the first message of a worker, whatever its version.

    Raises:
        WireBroken: it is no greeting.
    """
    names = [field.name for field in fields(Hello)]
    if not isinstance(message, dict) or not {*names} <= {*message}:
        raise WireBroken("the worker's first message is no greeting.")
    return Hello(**{name: message[name] for name in names})


def frame(messages: Sequence[Any]) -> bytes:
    """Messages as they go over the socket.

    Raises:
        WireBroken: they are too large.
        Exception: one of them cannot be pickled.
    """
    body = pickle.dumps(messages, protocol=5)
    if len(body) > MAX_FRAME:
        raise WireBroken(f"a message of {len(body)} bytes is too large; {MAX_FRAME} are the most.")
    return _HEADER.pack(len(body)) + body


class FrameReader:
    """Puts frames together from the pieces that a socket gives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Take the next bytes. Returns the messages that are complete by now, in order.

        Raises:
            WireBroken: this is no frame of ours.
        """
        self._buffer += data
        messages: list[Any] = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer, start)
            if size > MAX_FRAME:
                raise WireBroken(f"a frame of {size} bytes cannot be one of ours.")
            end = start + _HEADER.size + size
            if len(self._buffer) < end:
                break
            with memoryview(self._buffer) as view:
                messages += _unpickle(view[start + _HEADER.size : end])
            start = end
        if start:
            del self._buffer[:start]
        return messages


def _unpickle(body: memoryview) -> list[Any]:
    try:
        with body:
            messages = pickle.loads(body)
    except Exception as error:
        raise WireBroken(f"a frame cannot be read ({type(error).__name__}: {error}).") from None
    if not isinstance(messages, list):
        raise WireBroken(f"a frame holds a {type(messages).__name__} and no list.")
    return messages
