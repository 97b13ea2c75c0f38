"""The kernel's cache of files: dropping a file from it, and how much of one it has. Linux only."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from .side import CannotRun

DROPPED = 0.05  # share of a file that may still be there


def drop(files: Iterable[Path]) -> None:
    """Have the next reader of these files read them from the disk.

    Raises:
        CannotRun: that is not possible on this machine.
    """
    if sys.platform != "linux":
        raise CannotRun("files can be dropped from the page cache on Linux only")
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not written yet are not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        if cached(file) > DROPPED:
            raise CannotRun("this machine does not drop files from its page cache")


def cached(file: Path) -> float:
    """The share of a file that is in the page cache, from 0 to 1."""
    size = file.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    there = (ctypes.c_ubyte * pages)()
    # A private mapping that may be written: ctypes gives no address of any other.
    with (
        file.open("rb") as opened,
        mmap.mmap(
            opened.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
        ) as mapped,
    ):
        start = ctypes.c_char.from_buffer(mapped)
        library = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p(ctypes.addressof(start))
        failed = library.mincore(address, ctypes.c_size_t(size), there)
        del start  # a mapping with a view cannot be closed
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in there) / pages
