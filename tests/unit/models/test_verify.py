from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.errors import InvalidRequest, ModelError, ModelInvalid, ModelUnsupported
from mlx_guarded_llm.models import Progress, verify
from mlx_guarded_llm.models.config import DEFAULT_CONTEXT_WINDOW
from tests.unit.models.folders import (
    CONFIG,
    folder_spec,
    make_adapter,
    make_folder,
    write_safetensors,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model")


def test_a_sound_folder_is_described(folder: Path) -> None:
    files = verify(folder_spec(folder), folder)
    assert files.weight_files == (folder / "model.safetensors",)
    assert files.weight_bytes == 8 * 4 * 2 + 4 * 2
    assert files.context_window == 128
    assert files.config["model_type"] == "llama"


def test_progress_ends_at_the_whole(folder: Path) -> None:
    told: list[Progress] = []
    verify(folder_spec(folder), folder, progress=told.append)
    assert told[-1].stage == "verify"
    assert told[-1].done == told[-1].total == (folder / "model.safetensors").stat().st_size


def _write(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def _config(**changes: Any) -> Callable[[Path], None]:
    return _write("config.json", json.dumps({**CONFIG, **changes}))


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _rename(name: str, new: str) -> Callable[[Path], None]:
    def rename(folder: Path) -> None:
        (folder / name).rename(folder / new)

    return rename


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _index(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model.safetensors", "x": "model-extra.st"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _remote_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    auto_map = {"auto_map": {"AutoTokenizer": ["tok.Tok", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(auto_map))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        pytest.param(_empty, ModelInvalid, "empty", id="empty"),
        pytest.param(_remove("config.json"), ModelInvalid, "config.json is missing", id="config"),
        pytest.param(_write("config.json", "{"), ModelInvalid, "not JSON", id="bad json"),
        pytest.param(_write("config.json", "[]"), ModelInvalid, "not a JSON object", id="list"),
        pytest.param(_write("config.json", "[" * 10**5), ModelInvalid, "not JSON", id="deep"),
        pytest.param(_write("config.json", "{}"), ModelInvalid, "no model_type", id="no type"),
        pytest.param(_config(model_type=3), ModelInvalid, "no model_type", id="number type"),
        pytest.param(_config(model_type="lama"), ModelUnsupported, "'lama'", id="unknown type"),
        pytest.param(_config(model_file="m.py"), ModelUnsupported, "own code", id="remote code"),
        pytest.param(_truncate, ModelInvalid, "truncated", id="truncated"),
        pytest.param(
            _rename("model.safetensors", "pytorch_model.bin"),
            ModelUnsupported,
            "only safetensors are read",
            id="pickle",
        ),
        pytest.param(
            _rename("model.safetensors", "model.safetensors.incomplete"),
            ModelInvalid,
            "half-fetched",
            id="leftover",
        ),
        pytest.param(_remove("model.safetensors"), ModelInvalid, "no model", id="no weights"),
        pytest.param(
            _rename("model.safetensors", "model-00002-of-00003.safetensors"),
            ModelInvalid,
            "2 weight files are missing, the first is model-00001-of-00003",
            id="missing shard",
        ),
        pytest.param(_index, ModelInvalid, "first is model-extra.st", id="index"),
        pytest.param(_remove("tokenizer.json"), ModelInvalid, "no tokenizer", id="tokenizer"),
        pytest.param(_write("tokenizer.json", '{"a"'), ModelInvalid, "not JSON", id="cut tok"),
        pytest.param(_remote_tokenizer, ModelUnsupported, "own code", id="remote tokenizer"),
    ],
)
def test_each_damage_has_its_error_and_a_hint(
    folder: Path, damage: Callable[[Path], None], error: type[ModelError], message: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        verify(folder_spec(folder), folder)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_invalid(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match="cannot be read"):
        verify(folder_spec(tmp_path / "none"), tmp_path / "none")


def test_code_for_other_libraries_does_no_harm(folder: Path) -> None:
    # Phi-3 and many others name their own code although mlx-lm has the architecture.
    _config(auto_map={"AutoModelForCausalLM": "modeling.Model"})(folder)
    verify(folder_spec(folder), folder)


def test_an_index_of_the_source_does_no_harm(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    verify(folder_spec(folder), folder)


def test_a_leftover_beside_the_finished_file_does_no_harm(folder: Path) -> None:
    (folder / "model.safetensors.part").write_text("")
    verify(folder_spec(folder), folder)


def test_bytes_of_an_adapter_count(folder: Path, tmp_path: Path) -> None:
    plain = verify(folder_spec(folder), folder)
    adapter = make_adapter(tmp_path / "adapter")
    adapted = verify(folder_spec(folder, adapter_path=str(adapter)), folder)
    assert adapted.weight_bytes == plain.weight_bytes + 4 * 2 * 4
    assert adapted.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (shutil.rmtree, ModelInvalid, "no adapter folder"),
        (_remove("adapters.safetensors"), ModelInvalid, "is missing"),
        (_remove("adapter_config.json"), ModelInvalid, "is missing"),
        (_write("adapter_config.json", "{}"), ModelInvalid, "num_layers and lora_parameters"),
        (
            _rename("adapters.safetensors", "adapter_model.safetensors"),
            ModelUnsupported,
            "PEFT",
        ),
    ],
)
def test_a_broken_adapter_has_its_error(
    folder: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    error: type[ModelError],
    message: str,
) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    damage(adapter)
    with pytest.raises(error, match=message) as caught:
        verify(folder_spec(folder, adapter_path=str(adapter)), folder)
    assert caught.value.hint


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one, copy = make_folder(tmp_path / "one"), make_folder(tmp_path / "copy")
    tuned = make_folder(tmp_path / "tuned", fill=2)
    changed = make_folder(tmp_path / "changed", {**CONFIG, "rope_theta": 5.0})
    prints = [
        verify(folder_spec(folder), folder).fingerprint for folder in (one, copy, tuned, changed)
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_every_part_of_a_large_file_is_sampled(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "large")
    file = write_safetensors(
        folder / "model.safetensors", {"w": ("F32", (1024, 256)), "n": ("F32", (4,))}
    )
    before = verify(folder_spec(folder), folder).fingerprint
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert verify(folder_spec(folder), folder).fingerprint != before


def test_a_hub_fingerprint_holds_the_commit(tmp_path: Path) -> None:
    one, other = make_folder(tmp_path / "c0ffee"), make_folder(tmp_path / "decade")
    spec = replace(folder_spec(one), kind="hub", location="org/repo")
    assert verify(spec, one).fingerprint != verify(spec, other).fingerprint


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"max_position_embeddings": 77}, 77),
        ({"n_positions": 78}, 78),
        ({"text_config": {"max_position_embeddings": 79}, "max_position_embeddings": 5}, 79),
        ({"max_position_embeddings": None, "max_sequence_length": 80}, 80),
        ({"max_position_embeddings": "many"}, DEFAULT_CONTEXT_WINDOW),
        ({"max_position_embeddings": -1}, DEFAULT_CONTEXT_WINDOW),
        ({"max_position_embeddings": True}, DEFAULT_CONTEXT_WINDOW),
        ({}, DEFAULT_CONTEXT_WINDOW),
    ],
)
def test_the_context_window_is_found(tmp_path: Path, config: dict[str, Any], window: int) -> None:
    folder = make_folder(tmp_path / "model", {"model_type": "llama", **config})
    assert verify(folder_spec(folder), folder).context_window == window
    assert verify(folder_spec(folder, context_window=9), folder).context_window == 9


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}}, 400),
        ({}, 10**6),  # it says nothing
    ],
)
def test_no_window_is_wider_than_the_model(
    tmp_path: Path, config: dict[str, Any], most: int
) -> None:
    folder = make_folder(tmp_path / "model", {"model_type": "llama", **config})
    assert verify(folder_spec(folder, context_window=most), folder).context_window == most
    if config:
        with pytest.raises(InvalidRequest, match=f"{most + 1} is more than the {most}"):
            verify(folder_spec(folder, context_window=most + 1), folder)


def test_the_tokenizers_window_is_second_best(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", {"model_type": "mamba"})
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 2048}')
    assert verify(folder_spec(folder), folder).context_window == 2048
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert verify(folder_spec(folder), folder).context_window == DEFAULT_CONTEXT_WINDOW
