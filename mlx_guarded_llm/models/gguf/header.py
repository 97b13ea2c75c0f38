"""Reading the header of a GGUF file: its metadata, and where its tensors are.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelInvalid, ModelNotFound, ModelUnsupported

# name: (elements in a block, bytes of a block). Only these can be imported.
READABLE = {
    "F32": (1, 4),
    "F16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q8_0": (32, 34),
}
_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9

# A damaged count must not cause a loop of hours.
_MAX_ENTRIES = 1 << 16
_MAX_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file.

    Attributes:
        type: "F16", "Q4_1" and so on.
        shape: dimensions as MLX has them, the contiguous one last.
    """

    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GGUFHeader:
    """The header of a GGUF file.

    Attributes:
        metadata: values by key, arrays as lists.
        tensors: by name.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]


def read_gguf(path: Path) -> GGUFHeader:
    """Read and check a header, including the extent of each tensor.

    Raises:
        ModelNotFound: there is no such file.
        ModelInvalid: it is truncated or not a GGUF file.
        ModelUnsupported: its version or the type of a tensor is not supported.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path).header()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ModelNotFound(f"there is no file {path}.", hint="Check the path.") from error
    except (OSError, ValueError, struct.error) as error:
        raise ModelInvalid(
            f"{path} is truncated or no GGUF file.", hint="Download it again."
        ) from error


class _Reader:
    """Reads the bytes in order. Raises struct.error or ValueError if they end too early."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    def header(self) -> GGUFHeader:
        if self._data[:4] != b"GGUF":
            raise ValueError("magic")
        self._at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise ModelUnsupported(
                f"{self._path} is GGUF version {version}; versions 2 and 3 are read.",
                hint="Convert the model with a current llama.cpp.",
            )
        tensor_count, entry_count = self._count("Q"), self._count("Q")
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self._string()
            metadata[key] = self._value(self._scalar("I"))
        infos = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError("alignment")
        start = -(-self._at // alignment) * alignment
        for _, info, offset in infos:
            self._check_extent(info, start + offset)
        return GGUFHeader(metadata, {name: info for name, info, _ in infos})

    def _check_extent(self, info: TensorInfo, begin: int) -> None:
        block, nbytes = READABLE[info.type]
        if info.shape[-1] % block:
            raise ValueError("rows are no multiple of the block")
        if begin + math.prod(info.shape) // block * nbytes > len(self._data):
            raise ValueError("truncated")

    def _tensor(self) -> tuple[str, TensorInfo, int]:
        name = self._string()
        rank = self._scalar("I")
        if not 1 <= rank <= 4:
            raise ValueError("rank")
        shape = tuple(reversed([self._scalar("Q") for _ in range(rank)]))
        number, offset = self._scalar("I"), self._scalar("Q")
        kind = _TYPES.get(number, f"number {number}")
        if kind not in READABLE:
            raise ModelUnsupported(
                f"{self._path}: tensor {name} is of type {kind}, which MLX does not read.",
                hint=f"Use a file in one of {', '.join(READABLE)}.",
            )
        return name, TensorInfo(kind, shape), offset

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(self._code(kind))
        kind, length = self._scalar("I"), self._scalar("Q")
        if length > _MAX_ELEMENTS:
            raise ValueError("array length")
        if kind == _STRING:
            return [self._string() for _ in range(length)]
        return list(self._unpack(f"<{length}{self._code(kind)}"))

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"value type {kind}")
        return _SCALARS[kind]

    def _count(self, code: str) -> int:
        count: int = self._scalar(code)
        if count > _MAX_ENTRIES:
            raise ValueError("count")
        return count

    def _scalar(self, code: str) -> Any:
        return self._unpack(f"<{code}")[0]

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _string(self) -> str:
        length = self._scalar("Q")
        end = self._at + length
        if end > len(self._data):
            raise ValueError("string")
        # Token texts of byte-level vocabularies are valid UTF-8; damaged ones are not.
        text = self._data[self._at : end].decode("utf-8")
        self._at = end
        return text
