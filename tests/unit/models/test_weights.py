from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.errors import ModelInvalid
from mlx_guarded_llm.models import verify
from mlx_guarded_llm.models.files import UnreadableFile
from mlx_guarded_llm.models.safetensors import Tensor
from mlx_guarded_llm.models.sizes import check_sizes, embedding_rows
from mlx_guarded_llm.models.weights import weight_files
from tests.unit.models.folders import CONFIG, folder_spec, make_folder, write_safetensors

FOUR = ("F32", (4, 4))


def index(folder: Path, **files: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def names(folder: Path) -> list[str]:
    return [file.name for file in weight_files(folder, [p.name for p in folder.iterdir()])]


def test_the_index_says_which_files_there_are(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    write_safetensors(folder / "model-a.safetensors")
    write_safetensors(folder / "weights.safetensors")
    assert names(folder) == ["model-a.safetensors", "model.safetensors"]
    index(folder, x="weights.safetensors", y="model-a.safetensors")
    assert names(folder) == ["model-a.safetensors", "weights.safetensors"]
    index(folder, x="weights.safetensors", y="of-the-source.safetensors")
    assert names(folder) == ["model-a.safetensors", "model.safetensors"]


def test_one_tensor_in_two_files_is_an_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    write_safetensors(folder / "model-a.safetensors")
    with pytest.raises(ModelInvalid, match=r"in model-a\.safetensors and in model\.safetensors"):
        verify(folder_spec(folder), folder)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"x": 5, "z": [1]}}',
     '{"weight_map": {"x": "../a"}}', '{"weight_map": {"x": "/dev/zero"}}'],
)  # fmt: skip
def test_an_odd_index_is_invalid(tmp_path: Path, content: str) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelInvalid, match=r"index\.json"):
        verify(folder_spec(folder), folder)


def tensors(**more: tuple[int, ...]) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (8, 4),
        **{f"model.layers.{i}.mlp.w": (4, 4) for i in range(2)},
        **more,
    }
    return {name: Tensor("F32", shape, 0) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "1000000000 layers, and the weights have 2"),
        ({"num_hidden_layers": 3}, "3 layers, and the weights have 2"),
        ({"num_experts": 10**6}, "1000000 experts, and the weights have 8"),
        ({"hidden_size": 5}, "hidden states of 5"),
        ({"vocab_size": 9}, "vocabulary of 9 tokens, and the weights one of 8"),
        ({"vocab_size": "many"}, "vocab_size many"),
        ({"intermediate_size": 10**12}, "intermediate_size 1e\\+12"),
        ({"text_config": {"num_hidden_layers": 10**5}}, "100000 layers"),
    ],
)
def test_sizes_that_the_weights_do_not_have(change: dict[str, Any], message: str) -> None:
    check_sizes(CONFIG, tensors())
    with pytest.raises(UnreadableFile, match=message):
        check_sizes({**CONFIG, **change}, tensors())


def test_a_layer_too_many_is_not_counted_in_another_stack() -> None:
    more = {f"vision.blocks.{i}.w": (4, 4) for i in range(9)}
    check_sizes({**CONFIG, "num_hidden_layers": 2}, tensors(**more))
    assert embedding_rows(CONFIG, tensors(**{"vision_model.embeddings.weight": (3, 4)})) == 8


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "EVIL"}, "EVIL"),
        ({"dtype": "F64"}, "MLX cannot read"),
        ({"shape": [4, 5]}, "said to have"),
        ({"shape": [-4, -4]}, "damaged"),
        ({"shape": [2**40, 0]}, "damaged"),
        ({"shape": [4.0, 4.0]}, "damaged"),
        ({"shape": [True, 16]}, "damaged"),
        ({"data_offsets": [0]}, "damaged"),
        ({"data_offsets": [64, 0]}, "damaged"),
    ],
)
def test_an_odd_header_is_invalid(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    folder = make_folder(tmp_path / "m")
    file = write_safetensors(folder / "model.safetensors", {"w": FOUR})
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["w"] |= entry
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(ModelInvalid, match=message):
        verify(folder_spec(folder), folder)
