from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.errors import ModelError, ModelInvalid, ModelNotFound, ModelUnsupported
from mlx_guarded_llm.models.gguf.header import TensorInfo, read_gguf
from tests.unit.models.gguf_files import LLAMA, SHAPES, TOKENS, all_matrices, write_gguf


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"])
def test_metadata_and_tensors_are_read(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file, kinds=all_matrices(kind))
    header = read_gguf(file)
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["tokenizer.ggml.tokens"] == TOKENS
    assert header.metadata["tokenizer.ggml.add_bos_token"] is False
    assert header.metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert header.tensors["blk.0.ffn_up.weight"] == TensorInfo(kind, SHAPES["blk.0.ffn_up.weight"])


def test_a_foreign_type_is_refused_by_name(tmp_path: Path) -> None:
    shapes = {**SHAPES, "blk.0.ffn_up.weight": (96, 256)}
    write_gguf(tmp_path / "m.gguf", kinds={"blk.0.ffn_up.weight": "Q4_K"}, shapes=shapes)
    with pytest.raises(ModelUnsupported, match=r"blk\.0\.ffn_up\.weight is of type Q4_K") as caught:
        read_gguf(tmp_path / "m.gguf")
    assert "Q8_0" in caught.value.hint


def test_a_foreign_version_is_refused_by_number(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", version=9)
    with pytest.raises(ModelUnsupported, match="version 9"):
        read_gguf(tmp_path / "m.gguf")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ModelNotFound):
            read_gguf(path)


@pytest.mark.parametrize("kept", [0, 3, 4, 20, 100, 1000, -1])
def test_a_truncated_file_is_invalid(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelInvalid, match="truncated"):
        read_gguf(file)


def test_rows_that_fill_no_block_are_invalid(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", kinds={"w": "Q8_0"}, shapes={"w": (32, 8)})
    with pytest.raises(ModelInvalid):
        read_gguf(tmp_path / "m.gguf")


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_damage_is_read_or_a_typed_error(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file, {**LLAMA})
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 2500))
        content[at] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        read_gguf(file)
    except ModelError:
        pass
