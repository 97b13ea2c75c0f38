"""Reading the small files of a model folder, which cannot be trusted.

A name in such a folder may be a pipe, a device or a sparse file of terabytes. So only regular files
are read, up to the size that such a file may reasonably have.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, BinaryIO

_MiB = 2**20
JSON_LIMIT = 32 * _MiB  # bytes; the index of the largest models has about 15 MiB
TEMPLATE_LIMIT = 4 * _MiB
VOCABULARY_LIMIT = 512 * _MiB

Stamp = tuple[int, int]  # of a file: its size, and when it was written, in nanoseconds


class UnreadableFile(Exception):
    """A file is missing, harmful to read, or not what its name says, as the message explains."""


def check_regular(path: Path, *, limit: float) -> int:
    """Check that a file is safe to read. Returns its size in bytes.

    Raises:
        UnreadableFile: it is missing, not a regular file, or larger than `limit` bytes.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise UnreadableFile(f"{path} is missing") from error
    except (OSError, ValueError) as error:  # ValueError: not a possible file name
        raise UnreadableFile(f"{path} cannot be read ({error})") from error
    _check(path, status, limit)
    return status.st_size


def stamp(path: Path) -> Stamp:
    """A value that changes when a file is written or replaced, as far as metadata show it.

    Raises:
        UnreadableFile: it is missing.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read ({error})") from error
    return status.st_size, status.st_mtime_ns


def check_unchanged(stamps: Mapping[Path, Stamp]) -> None:
    """Check that files have not changed since their stamps were taken.

    Raises:
        UnreadableFile: one has.
    """
    for path, before in stamps.items():
        if stamp(path) != before:
            raise UnreadableFile(f"{path} was written to after it had been checked")


def read_bytes(path: Path, *, limit: int = JSON_LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        UnreadableFile: as `check_regular` does.
    """
    with open_regular(path, limit=limit) as file:
        return file.read(limit)


def read_head(path: Path, size: int, *, limit: int = VOCABULARY_LIMIT) -> bytes:
    """The first `size` bytes of a regular file of at most `limit`.

    Raises:
        UnreadableFile: as `check_regular` does.
    """
    with open_regular(path, limit=limit) as file:
        return file.read(size)


@contextmanager
def open_regular(path: Path, *, limit: float = inf) -> Iterator[BinaryIO]:
    """A regular file of at most `limit` bytes, open for reading.

    Raises:
        UnreadableFile: as `check_regular` does, or reading it fails.
    """
    check_regular(path, limit=limit)  # opening a device may have side effects
    try:
        # Without O_NONBLOCK, a pipe that has just replaced the file would block us.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            _check(path, os.fstat(handle), limit)
            yield file
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read ({error})") from error


def read_text(path: Path, *, limit: int = TEMPLATE_LIMIT) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        UnreadableFile: as `check_regular` does, or it is not UTF-8.
    """
    try:
        return read_bytes(path, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"{path} is not text in UTF-8") from error


def parse(path: Path, raw: bytes) -> Any:
    """Parse the JSON of a file.

    Raises:
        UnreadableFile: it is not JSON.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"{path} is not JSON") from error


def parse_object(path: Path, raw: bytes) -> dict[str, Any]:
    """Parse the JSON object of a file.

    Raises:
        UnreadableFile: it is not a JSON object.
    """
    value = parse(path, raw)
    if not isinstance(value, dict):
        raise UnreadableFile(f"{path} is not a JSON object")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UnreadableFile: it is missing, unreadable, or not a JSON object.
    """
    return parse_object(path, read_bytes(path))


def read_optional(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one if there is no such file.

    Raises:
        UnreadableFile: there is something else with that name.
    """
    return read_object(path) if os.path.lexists(path) else {}


def _check(path: Path, status: os.stat_result, limit: float) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFile(f"{path} is not a regular file")
    if status.st_size > limit:
        raise UnreadableFile(f"{path} has {status.st_size} bytes; at most {limit} are read")
