"""Reads the headers of safetensors files; the tensors themselves are never read.

A file is: 8 bytes (little-endian header length), the header as JSON, the tensors.
The header maps a tensor's name to {"dtype", "shape", "data_offsets": [begin, end]}.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_LFS_POINTER = b"version https://git-lfs"


class BrokenFile(Exception):
    """A safetensors file is damaged; the message says how, without its name."""


@dataclass(frozen=True)
class Tensor:
    """One entry of a header.

    Attributes:
        dtype: as the file spells it: "F16", "BF16", "F32", "U32" and so on.
        shape: its dimensions.
        nbytes: its size.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Header:
    """The header of one file.

    Attributes:
        tensors: by name.
        raw: the JSON text, for fingerprints.
    """

    tensors: Mapping[str, Tensor]
    raw: bytes


def read_header(path: Path) -> Header:
    """Reads and checks the header of one file.

    Raises:
        BrokenFile: the file is truncated or no safetensors file.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise BrokenFile("is a Git LFS pointer, not the weights (run `git lfs pull`)")
        if len(start) < 8:
            raise BrokenFile(f"is truncated: it has {size} bytes")
        (length,) = struct.unpack("<Q", start[:8])
        if length > _MAX_HEADER:
            raise BrokenFile("is not a safetensors file")
        if 8 + length > size:
            raise BrokenFile(f"is truncated: it has {size} bytes, its header alone takes {length}")
        file.seek(8)
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        tensors = {name: _tensor(entry) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise BrokenFile("has a damaged header") from error
    if 8 + length + end > size:
        raise BrokenFile(f"is truncated: it has {size} of {8 + length + end} bytes")
    return Header(tensors, raw)


def _tensor(entry: Mapping[str, object]) -> Tensor:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list)):
        raise TypeError(entry)
    begin, end = offsets
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end):
        raise ValueError(entry)
    return Tensor(dtype, tuple(int(dimension) for dimension in shape), end - begin)
