"""The server that all programs of one user share: where it listens, and whether one runs.

There is one at most. It holds the lock of a file for as long as it lives, and the file says who it
is. The system releases the lock of a process that dies, however that dies, so what a dead server
has left behind means nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, ServerAlreadyRunning
from ..version import __version__
from .runtime_folder import VARIABLE, check_private, folder, make

LONGEST = 103  # bytes of a socket's path on macOS; Linux takes four more
PROBE = 1.0  # seconds for a server to take a connection; one that lives does so at once
SETTLING = 2.0  # seconds; a server that starts writes its entry in far less
_PAUSE = 0.02


@dataclass(frozen=True, kw_only=True)
class ServerEntry:
    """Who a server is.

    Attributes:
        pid: of its process.
        started: when that process began, in seconds since the epoch.
        state: "starting", "serving", or "ending" once it takes nothing new.
        urls: where it listens.
        log: the file of its log; "" if that goes to stderr.
    """

    pid: int
    started: float
    version: str
    state: str = "starting"
    urls: tuple[str, ...] = ()
    log: str = ""


def this_process(state: str = "starting", **known: Any) -> ServerEntry:
    """The entry of a server in this process, with other fields as they are given."""
    pid = os.getpid()
    began = _began(pid) or time.time()
    return ServerEntry(pid=pid, started=began, version=__version__, state=state, **known)


def socket_path() -> Path:
    """The socket it listens at.

    Raises:
        InvalidRequest: its path would be too long for a socket.
    """
    path = folder() / "server.sock"
    if len(os.fsencode(path)) > LONGEST:
        raise InvalidRequest(
            f"{path} is too long for a socket: {len(os.fsencode(path))} bytes, and {LONGEST} are "
            "the most.",
            hint=f"Let {VARIABLE} name a folder with a shorter path.",
        )
    return path


def log_path() -> Path:
    """The log of one that runs in the background."""
    return folder() / "server.log"


def address() -> str | None:
    """The address of the shared server, or None if none listens. Takes `PROBE` seconds at most."""
    try:
        path = socket_path()
        check_private(path.parent)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(PROBE)
            try:
                probe.connect(str(path))
            except (TimeoutError, BlockingIOError):
                pass  # so many want to connect that it cannot keep up: it is there
    except (OSError, InvalidRequest):
        return None
    return url_of(path)


def url_of(path: Path) -> str:
    """The address of a socket."""
    return f"unix://{urllib.parse.quote(str(path))}"


class Claim:
    """The place of the shared server, which this process holds."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, entry: ServerEntry) -> None:
        """Say who holds it."""
        data = json.dumps(asdict(entry)).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)


@contextmanager
def claim() -> Iterator[Claim]:
    """Be the shared server until the end of the block.

    Raises:
        ServerAlreadyRunning: one runs.
        InvalidRequest: the folder cannot be used.
    """
    try:
        place = make()
        fd = os.open(_lock_path(place), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidRequest(
            f"there is no folder for the shared server ({error}).",
            hint=f"Let {VARIABLE} name a folder that is yours alone.",
        ) from error
    try:
        _lock(fd)
        claimed = Claim(fd)
        claimed.write(this_process())
        try:
            yield claimed
        finally:
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)  # the lock file stays: another process may have it open already


def running() -> ServerEntry | None:
    """Who the shared server is, whether it answers or not; None if none runs."""
    try:
        place = folder()
        check_private(place)
        fd = os.open(_lock_path(place), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _holder(fd)
    finally:
        os.close(fd)


def _holder(fd: int) -> ServerEntry | None:
    end = time.monotonic() + SETTLING
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            entry = _read(fd)
            if entry is not None or time.monotonic() > end:
                return entry
            time.sleep(_PAUSE)  # it has the lock and has not written its entry yet
        else:
            return None


def _lock(fd: int) -> None:
    """Take the lock. Who only looks whether it is held has it for a moment, too."""
    end = time.monotonic() + SETTLING
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            entry = _read(fd)
            if entry is not None or time.monotonic() > end:
                raise already_running(entry) from None
            time.sleep(_PAUSE)


def is_here(entry: ServerEntry) -> bool:
    """Whether its process lives, on this machine."""
    began = _began(entry.pid)
    return began is not None and abs(began - entry.started) < 2


def already_running(entry: ServerEntry | None) -> ServerAlreadyRunning:
    """What another server that wants the place is told."""
    who = f" (process {entry.pid}, version {entry.version})" if entry is not None else ""
    return ServerAlreadyRunning(
        f"your shared server runs already{who}.",
        hint="`mlx-guarded status` tells about it, `mlx-guarded stop` ends it.",
    )


def _read(fd: int) -> ServerEntry | None:
    """What the file says, if that is about a process that lives."""
    try:
        found = json.loads(os.pread(fd, 65536, 0))
        entry = ServerEntry(**{**found, "urls": tuple(found["urls"])})
        # A dead server's entry may be there until the next one writes its own.
        return entry if is_here(entry) else None
    except (ValueError, TypeError, KeyError):
        return None


def _began(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # it has ended, and nobody asked how
            return None
        return float(process.create_time())
    except psutil.Error:
        return None


def _lock_path(place: Path) -> Path:
    return place / "server.lock"
