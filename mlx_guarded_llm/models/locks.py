"""One download of a model at a time, across threads and processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import PullFailed

LOCK_WAIT = 3600.0  # seconds; a 40 GB model over a slow line takes about that long


@contextmanager
def fetch_lock(cache_dir: Path, key: str, name: str) -> Iterator[None]:
    """Hold the lock of one model. A process that dies releases it.

    Args:
        cache_dir: the lock is in its `locks` folder.
        key: identifies what is downloaded.
        name: the model's name, for the message.

    Raises:
        PullFailed: it was held for `LOCK_WAIT` seconds, or the folder is not writable.
    """
    from filelock import FileLock, Timeout

    folder = cache_dir / "locks"
    lock = FileLock(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_WAIT)
    except Timeout as error:
        raise PullFailed(
            f"{name} has been locked by another fetch for {LOCK_WAIT:.0f} s.",
            hint="Wait for the other process, or end it.",
        ) from error
    except (OSError, NotImplementedError) as error:
        raise PullFailed(
            f"{name} cannot be locked in {folder}: {error}.",
            hint="Make the folder writable, or set MLX_GUARDED_CACHE_DIR to one that is.",
        ) from error
    try:
        yield
    finally:
        lock.release()
