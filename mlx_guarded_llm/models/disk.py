"""Free space on the disk, and the size of what is on it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import PullFailed

_SPARE = 64 << 20  # bytes to leave free, for whatever else is written meanwhile


def require_space(folder: Path, needed: int, name: str) -> None:
    """Check that there is enough space before a byte is written.

    Args:
        folder: where the bytes will be written; it need not exist.
        needed: how many bytes.
        name: the model's name, for the message.

    Raises:
        PullFailed: there is not enough; the message has both numbers.
    """
    free = free_bytes(folder)
    if free < needed + _SPARE:
        raise disk_full(folder, name, needed=needed, free=free)


def disk_full(folder: Path, name: str, *, needed: int | None, free: int) -> PullFailed:
    """The error for a disk that is too small, or that filled up meanwhile."""
    wanted = "more than that" if needed is None else f"{gigabytes(needed)} GB"
    return PullFailed(
        f"{name} needs {wanted} in {folder}, which has {gigabytes(free)} GB free.",
        hint="Free some space, or keep models on another disk (HF_HOME, MLX_GUARDED_CACHE_DIR).",
    )


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then its cause, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that the disk is full."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return any(isinstance(link, OSError) and link.errno in full for link in causes(error))


def free_bytes(folder: Path) -> int:
    """The free bytes where the folder is or would be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def tree_size(folder: Path) -> int:
    """The bytes of all files below a folder, without links and files that vanish meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                total += 0 if path.is_symlink() else path.stat().st_size
            except OSError:
                continue
    return total


def gigabytes(count: int) -> str:
    """A number of bytes in gigabytes, without the unit."""
    return f"{count / 1e9:.2f}"
