"""Which files the weights of a model are, and which tensors they contain."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .files import UnreadableFile, read_object
from .safetensors import BrokenFile, Header, read_header

INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def weight_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """The weight files of a model, in name order; empty if there are none.

    If there is an index, they are the files that it names, and no others. If one of these is
    missing, the index comes from another folder, as converters leave it behind. Then, as without
    an index, they are all files named `model*.safetensors`.

    Args:
        folder: of the model.
        names: of the files in it.

    Raises:
        UnreadableFile: the index is damaged.
    """
    names = set(names)
    named = set(_index(folder).values())
    if not named or not named <= names:
        named = {n for n in names if n.startswith("model") and n.endswith(".safetensors")}
    return [folder / name for name in sorted(named)]


def check_complete(folder: Path, headers: Mapping[Path, Header]) -> None:
    """Check that no file is missing, and that each tensor is in only one file.

    Raises:
        UnreadableFile: a file is missing, or a tensor is in two.
    """
    homes: dict[str, Path] = {}
    for file, header in headers.items():
        for tensor in header.tensors:
            other = homes.setdefault(tensor, file)
            if other is not file:
                raise UnreadableFile(
                    f"{folder} has the weights of two models: {tensor} is in {other.name} "
                    f"and in {file.name}"
                )
    present = {file.name for file in headers}
    missing = {
        file
        for tensor, file in _index(folder).items()
        if file not in present and tensor not in homes
    }
    for name in present:
        if match := _SHARD.fullmatch(name):
            stem, _, count = match.groups()
            shards = (f"{stem}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1))
            missing.update(shard for shard in shards if shard not in present)
    if missing:
        raise UnreadableFile(
            f"{len(missing)} weight files are missing, the first is {min(missing)}"
        )


def read_tensors(file: Path) -> Header:
    """The header of a weight file.

    Raises:
        UnreadableFile: it is damaged, or not a safetensors file.
    """
    try:
        return read_header(file)
    except BrokenFile as error:
        raise UnreadableFile(f"{file} {error}") from error


def _index(folder: Path) -> dict[str, str]:
    """The file of each tensor, by the index; empty if there is none."""
    path = folder / INDEX
    if not os.path.lexists(path):
        return {}
    files = read_object(path).get("weight_map")
    if not isinstance(files, dict) or not all(map(_is_plain, files.values())):
        raise UnreadableFile(f"{path} has no weight_map of tensors to the names of files beside it")
    return files


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and "\0" not in name
