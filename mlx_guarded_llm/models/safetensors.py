"""Reading the headers of safetensors files. The tensors themselves are never read.

A file is: 8 bytes (little-endian header length), the header as JSON, the tensors.
The header maps a tensor's name to {"dtype", "shape", "data_offsets": [begin, end]}.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from .files import open_regular

_MAX_HEADER = 32 * 2**20  # bytes; those of the largest models have a few MiB
_MAX_DIMENSION = 2**31 - 1  # of MLX
# Bits per element, for the types that MLX reads.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "C64": 64,
}  # fmt: skip
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
    """Read and check the header of one file.

    Raises:
        BrokenFile: the file is truncated or not a safetensors file.
        UnreadableFile: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
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
        tensors = {name: _tensor(name, entry) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise BrokenFile("has a damaged header") from error
    if 8 + length + end > size:
        raise BrokenFile(f"is truncated: it has {size} of {8 + length + end} bytes")
    return Header(tensors, raw)


def _tensor(name: str, entry: Mapping[str, object]) -> Tensor:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list)):
        raise TypeError(entry)
    begin, end = offsets
    if not all(type(n) is int for n in (begin, end, *shape)):  # nor bool
        raise TypeError(entry)
    if not (0 <= begin <= end and all(0 <= n <= _MAX_DIMENSION for n in shape)):
        raise ValueError(entry)
    if dtype not in _BITS:
        raise BrokenFile(f"has a tensor {name[:200]} of type {dtype[:40]!r}, which MLX cannot read")
    if prod(shape) * _BITS[dtype] != (end - begin) * 8:
        raise BrokenFile(
            f"has a damaged header: {name[:200]} of shape {shape} and type {dtype} "
            f"is said to have {end - begin} bytes"
        )
    return Tensor(dtype, tuple(shape), end - begin)
