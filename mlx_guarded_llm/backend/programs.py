"""What the programs of one user hold of a machine's memory, where no server holds all of it.

Each program has a file in a folder of the user, which says what it has claimed. It holds the lock
of that file for as long as it lives. The system releases the lock of a process that dies, however
that dies, so the entry of a file whose lock is free is worth nothing.

Whoever reads or writes entries holds one more lock meanwhile. So a claim is checked and entered
at once: two programs that ask at the same moment do not both get the last of the memory.

Locks and files may take their time, so all this happens on a thread of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..background import Background
from ..holder import Holder, held_bytes
from ..logs import THREAD_PREFIX, get_logger
from . import runtime_folder

VARIABLE = "MLX_GUARDED_COUNT_OTHERS"  # "0": nobody counts what other programs hold
MOST = 10_000  # claims that wait; a backend has one under way, and rarely
PATIENCE = 5.0  # seconds for the lock, which everybody holds for a moment only
FLUSH = 2.0  # seconds for the work that waits, when a backend is closed
IDLE = 5.0  # seconds without work after which the thread ends
_PAUSE = 0.005
_MOST_MODELS = 32  # in an entry, the largest
_MOST_BYTES = 2**20  # of an entry

logger = get_logger("backend")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a backend wants to hold.

    Attributes:
        device: "cpu", "gpu" or an NVIDIA GPU's own name; each has memory of its own.
        bytes: of all.
        models: bytes of each.
    """

    device: str
    bytes: int
    models: Mapping[str, int]


class Answer(NamedTuple):
    """What came of a claim.

    Attributes:
        granted: bytes that the backend holds now.
        others: the other programs that hold memory of that device.
    """

    granted: int
    others: tuple[Holder, ...]


Tell = Callable[[Answer | None], None]


class Programs:
    """This program among those of its user. All of its backends together have one entry.

    Its methods may be called from any thread; only `flush` and `others` wait.
    """

    def __init__(self) -> None:
        self._thread = Background(f"{THREAD_PREFIX}programs", idle=IDLE, failed=_log_failure)
        self._claims: dict[int, Claim] = {}  # by backend
        self._path: Path | None = None  # of the entry
        self._fd = -1
        self._locks: set[int] = set()  # open lock files
        self._complained = False
        os.register_at_fork(after_in_child=self._forked)

    def claim(self, owner: int, claim: Claim, budget: int, tell: Tell) -> bool:
        """Have a claim entered, as far as there is room for it beside other programs.

        What the backend holds already is never taken from it; it may claim less.

        Args:
            owner: identifies the backend.
            budget: bytes that all programs together may hold on that device.
            tell: called on another thread, with None if others cannot be counted here.

        Returns:
            Whether `tell` will be called.
        """

        def work() -> None:
            try:
                answer = self._enter(owner, claim, budget)
            except OSError as error:
                self._complain(error)
                tell(None)
            else:
                tell(answer)

        return self._thread.put(work, MOST)

    def release(self, owner: int) -> None:
        """A backend holds nothing any more."""
        if not self._thread.put(lambda: self._leave(owner), MOST):
            logger.warning("a claim of memory is given back only at the end of this process")

    def flush(self, timeout: float = FLUSH) -> bool:
        """Wait until everything asked for before is done. Returns whether it is."""
        return self._thread.flush(timeout)

    def others(self) -> list[tuple[str, Holder]]:
        """The other programs that hold memory, each with the device. This one waits.

        Raises:
            OSError: they cannot be counted here.
        """
        with self._locked() as folder:
            return _entries(folder, self._path)

    # ---- on the thread -----------------------------------------------------------

    def _enter(self, owner: int, claim: Claim, budget: int) -> Answer:
        with self._locked() as folder:
            self._move_to(folder)
            others = [holder for device, holder in _entries(folder, self._path)
                      if device == claim.device]  # fmt: skip
            free = max(0, budget - held_bytes(others))
            held = self._claims.get(owner)
            granted = min(claim.bytes, max(free, held.bytes if held is not None else 0))
            self._claims[owner] = Claim(device=claim.device, bytes=granted, models=claim.models)
            self._write(folder)
        return Answer(granted, tuple(others))

    def _leave(self, owner: int) -> None:
        if self._claims.pop(owner, None) is None:
            return
        try:
            with self._locked() as folder:
                self._move_to(folder)
                self._write(folder)
        except OSError as error:
            self._complain(error)

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        """The folder of the entries, which nobody else reads or changes meanwhile.

        Raises:
            OSError: there is no such folder, or no such lock.
        """
        folder = runtime_folder.make() / "programs"
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._locks.add(lock)
        try:
            end = time.monotonic() + PATIENCE
            while not _take(lock, fcntl.LOCK_EX):
                if time.monotonic() > end:
                    raise TimeoutError(f"another program keeps {folder / 'lock'} locked")
                time.sleep(_PAUSE)
            yield folder
        finally:
            # Not by closing it alone: a fork in the meantime has it open as well.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)
            self._locks.discard(lock)
            os.close(lock)

    def _move_to(self, folder: Path) -> None:
        """Give the file up if it is not in this folder any more: somebody has tidied up."""
        if self._path is None or (self._path.parent == folder and self._is_there()):
            return
        self._close()

    def _is_there(self) -> bool:
        assert self._path is not None
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except OSError:
            return False

    def _write(self, folder: Path) -> None:
        """Write the entry, or remove it if there is nothing to tell."""
        claims = [claim for claim in self._claims.values() if claim.bytes]
        if not claims:
            self._close()
            return
        if self._path is None:
            name = f"{os.getpid()}-{os.urandom(4).hex()}.json"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd, self._path = os.open(folder / name, flags, 0o600), folder / name
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        entry = {
            "pid": os.getpid(),
            "program": _program(),
            "claims": [
                {"device": claim.device, "bytes": claim.bytes, "models": _largest(claim.models)}
                for claim in claims
            ],
        }
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(entry).encode(), 0)

    def _close(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
        self._fd, self._path = -1, None

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            logger.warning("what other programs hold in memory is not counted: %s", error)
        self._complained = True

    # ---- forks -------------------------------------------------------------------

    def _forked(self) -> None:
        """The child holds nothing. It must not keep the locks of its parent either."""
        for fd in (self._fd, *self._locks):
            with suppress(OSError):
                os.close(fd)
        self._claims, self._path, self._fd, self._locks = {}, None, -1, set()


def are_counted() -> bool:
    """Whether the user lets programs count what others hold."""
    return os.environ.get(VARIABLE, "").lower() not in ("0", "false", "no", "off")


def _entries(folder: Path, own: Path | None) -> list[tuple[str, Holder]]:
    """What the living programs have claimed, with the devices. What dead ones left is removed."""
    found = []
    for path in sorted(folder.glob("*.json")):
        if path == own:
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # nobody who lives removes it; it may be no file
            continue
        try:
            if _take(fd, fcntl.LOCK_SH):
                path.unlink(missing_ok=True)
            else:
                found += _read(os.pread(fd, _MOST_BYTES, 0))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            logger.warning("%s cannot be read, and does not count", path)
        except OSError as error:
            logger.debug("%s is left out: %s", path, error)
        finally:
            os.close(fd)
    return found


def _take(fd: int, kind: int) -> bool:
    """Take a lock if it is free. Returns whether it was."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(data: bytes) -> list[tuple[str, Holder]]:
    """What an entry says.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is none.
    """
    entry = json.loads(data)
    pid, program = int(entry["pid"]), str(entry["program"])
    found: dict[str, Holder] = {}  # by device
    for claim in entry["claims"]:
        device, size = str(claim["device"]), claim["bytes"]
        if type(size) is not int or size < 0:
            raise ValueError(f"{size!r} bytes")
        known = found.get(device, Holder(program, pid, (), 0))
        models = dict.fromkeys([*known.models, *map(str, claim["models"])])
        found[device] = known._replace(models=tuple(models), bytes=known.bytes + size)
    return list(found.items())


def _largest(models: Mapping[str, int]) -> dict[str, int]:
    most = sorted(models, key=lambda name: -models[name])[:_MOST_MODELS]
    return {name[:1000]: models[name] for name in most}


def _program() -> str:
    """What this program is called: the name of its script."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    return (name if name not in ("", "-c", "-m") else Path(sys.executable).name or "python")[:200]


def _log_failure(error: BaseException) -> None:
    logger.error("memory could not be claimed", exc_info=error)


PROGRAMS = Programs()
