from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.models.safetensors import BrokenFile, read_header
from tests.unit.models.folders import write_safetensors


def test_a_header_gives_names_shapes_and_bytes(tmp_path: Path) -> None:
    file = write_safetensors(tmp_path / "model.safetensors", {"w": ("BF16", (3, 5))})
    tensor = read_header(file).tensors["w"]
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("BF16", (3, 5), 30)


@pytest.mark.parametrize("kept", [0, 5, 20, -1])
def test_a_truncated_file_is_found(tmp_path: Path, kept: int) -> None:
    file = write_safetensors(tmp_path / "model.safetensors")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(BrokenFile, match="truncated"):
        read_header(file)


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(BrokenFile, match="git lfs pull"):
        read_header(file)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"w": []},
        {"w": {"dtype": "F16", "shape": [1]}},
        {"w": {"dtype": "F16", "shape": [1], "data_offsets": [2, 0]}},
        {"w": {"dtype": "F16", "shape": [1], "data_offsets": ["0", "2"]}},
        {"w": {"dtype": "F16", "shape": [1], "data_offsets": [0]}},
        {"w": {"dtype": 1, "shape": [1], "data_offsets": [0, 2]}},
    ],
)
def test_a_damaged_header_is_found(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(BrokenFile, match="header"):
        read_header(file)


def test_deep_json_does_not_end_the_process(tmp_path: Path) -> None:
    text = b'{"a":' * 100_000
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(BrokenFile):
        read_header(file)


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_broken_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("any") / "model.safetensors"
    file.write_bytes(content)
    try:
        read_header(file)
    except BrokenFile:
        pass
