from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.errors import ModelError, ModelInvalid, ModelUnsupported
from mlx_guarded_llm.models.gguf.header import GGUFHeader, read_gguf
from mlx_guarded_llm.models.gguf.llama import check_llama, llama_config, mlx_name
from tests.unit.models.gguf_files import HIDDEN, LLAMA, SHAPES, all_matrices, write_gguf


def _header(tmp_path: Path, metadata: dict[str, Any] | None = None, **more: Any) -> GGUFHeader:
    file = tmp_path / "m.gguf"
    write_gguf(file, LLAMA if metadata is None else metadata, **more)
    return read_gguf(file)


def test_the_config_is_mlx_lms(tmp_path: Path) -> None:
    kinds = {**all_matrices("Q4_1"), "token_embd.weight": "Q8_0"}
    config = llama_config(_header(tmp_path, kinds=kinds), "m.gguf", quantised=True)
    assert config["model_type"] == "llama"
    assert config["head_dim"] == HIDDEN // 2
    assert config["num_key_value_heads"] == 1
    assert config["rope_traditional"] is True
    assert config["tie_word_embeddings"] is True
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "model.embed_tokens": {"group_size": 32, "bits": 8},
    }


def test_whole_weights_have_no_quantisation(tmp_path: Path) -> None:
    header = _header(tmp_path, kinds=all_matrices("F16"))
    assert "quantization" not in llama_config(header, "m.gguf", quantised=True)


def test_an_output_matrix_is_not_tied(tmp_path: Path) -> None:
    shapes = {**SHAPES, "output.weight": SHAPES["token_embd.weight"]}
    header = _header(tmp_path, shapes=shapes)
    check_llama(header, "m.gguf")
    assert llama_config(header, "m.gguf")["tie_word_embeddings"] is False


def test_linear_rope_scaling_is_kept(tmp_path: Path) -> None:
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    config = llama_config(_header(tmp_path, {**LLAMA, **scaling}), "m.gguf")
    assert config["rope_scaling"] == {"type": "linear", "factor": 4.0}


def test_names() -> None:
    assert mlx_name("blk.12.attn_q.scales") == "model.layers.12.self_attn.q_proj.scales"
    assert mlx_name("output.weight") == "lm_head.weight"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"general.architecture": "qwen2"}, ModelUnsupported, "'qwen2'"),
        ({"llama.expert_count": 8}, ModelUnsupported, "8 experts"),
        ({"llama.rope.dimension_count": 16}, ModelUnsupported, "rotates 16 of 32"),
        ({"llama.rope.scaling.type": "yarn"}, ModelUnsupported, "'yarn'"),
        ({"llama.block_count": 2}, ModelInvalid, r"no tensor blk\.1"),
        ({"llama.block_count": 0}, ModelInvalid, "llama.block_count is 0"),
        ({"llama.block_count": 1.5}, ModelInvalid, "llama.block_count is 1.5"),
        ({"llama.attention.head_count": 3}, ModelInvalid, "head_count is 3"),
        ({"llama.attention.head_count_kv": [1, 1]}, ModelInvalid, "head_count_kv"),
        ({"llama.feed_forward_length": 64}, ModelInvalid, "ffn_gate"),
        ({"tokenizer.ggml.tokens": ["a"]}, ModelInvalid, "token_embd"),
    ],
)
def test_what_is_not_imported_is_named(
    tmp_path: Path, changes: dict[str, Any], error: type[ModelError], message: str
) -> None:
    header = _header(tmp_path, {**LLAMA, **changes})
    with pytest.raises(error, match=message) as caught:
        check_llama(header, "m.gguf")
    assert caught.value.hint


@pytest.mark.parametrize("key", ["context_length", "embedding_length", "block_count"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    metadata = {name: value for name, value in LLAMA.items() if name != f"llama.{key}"}
    with pytest.raises(ModelInvalid, match=f"no llama.{key}"):
        check_llama(_header(tmp_path, metadata), "m.gguf")


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    header = _header(tmp_path, shapes={**SHAPES, "rope_freqs.weight": (16,)})
    with pytest.raises(ModelUnsupported, match=r"rope_freqs\.weight"):
        check_llama(header, "m.gguf")
