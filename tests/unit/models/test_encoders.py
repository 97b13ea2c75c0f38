from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.errors import ModelUnsupported
from mlx_guarded_llm.models import ModelSpec, encoders, verify
from mlx_guarded_llm.models.encoders import check_encoder, encoder_window, pooling
from mlx_guarded_llm.models.files import UnreadableFile
from mlx_guarded_llm.testing.tiny import make_tiny_embedder, make_tiny_model

BERT: dict[str, Any] = {"model_type": "bert"}


def write(folder: Path, name: str, content: object) -> None:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def embed_spec(folder: Path) -> ModelSpec:
    return ModelSpec(name="mine", kind="folder", location=str(folder), task="embed")


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert", "qwen3"])
def test_supported(tmp_path: Path, kind: str) -> None:
    check_encoder({"model_type": kind}, tmp_path)


@pytest.mark.parametrize("kind", ["llama", "siglip", "colqwen2_5", "t5", "../bert"])
def test_unsupported_types_are_told_what_to_do(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelUnsupported, match="cannot embed") as caught:
        check_encoder({"model_type": kind}, tmp_path)
    assert "all-minilm-l6-v2" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean+max"),
        ({}, None),
    ],
)
def test_pooling(tmp_path: Path, settings: object, mode: str | None) -> None:
    write(tmp_path, "1_Pooling/config.json", settings)
    assert pooling(tmp_path) == mode


def test_a_pooling_that_cannot_be_read_is_no_default(tmp_path: Path) -> None:
    write(tmp_path, "1_Pooling/config.json", [])
    with pytest.raises(UnreadableFile, match="not a JSON object"):
        pooling(tmp_path)


@pytest.mark.parametrize(
    ("kind", "mode"), [("bert", "max_tokens"), ("bert", "lasttoken"), ("qwen3", "mean_tokens")]
)
def test_a_pooling_that_cannot_be_had_is_refused(tmp_path: Path, kind: str, mode: str) -> None:
    write(tmp_path, "1_Pooling/config.json", {f"pooling_mode_{mode}": True})
    with pytest.raises(ModelUnsupported, match="pooled"):
        check_encoder({"model_type": kind}, tmp_path)


def test_a_layer_that_would_be_left_out_is_refused(tmp_path: Path) -> None:
    steps = [{"type": f"sentence_transformers.models.{name}"} for name in ("Pooling", "Normalize")]
    write(tmp_path, "modules.json", steps)
    check_encoder(BERT, tmp_path)
    write(tmp_path, "modules.json", [*steps, {"type": "sentence_transformers.models.Dense"}])
    with pytest.raises(ModelUnsupported, match="Dense"):
        check_encoder(BERT, tmp_path)


def test_a_model_with_another_head_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}
    with pytest.raises(ModelUnsupported, match="another task"):
        check_encoder(config, tmp_path)


def test_the_window_is_what_tokenizer_and_positions_leave() -> None:
    assert encoder_window(BERT, {}, 512) == 512
    assert encoder_window({"model_type": "xlm-roberta", "pad_token_id": 1}, {}, 514) == 512
    assert encoder_window(BERT, {"model_max_length": 256}, 512) == 256
    assert encoder_window(BERT, {"model_max_length": 10**30}, 512) == 512


def test_a_folder_is_checked_for_its_task(tmp_path: Path) -> None:
    embedder = make_tiny_embedder(tmp_path / "embedder", context_window=48)
    chat = make_tiny_model(tmp_path / "chat")
    assert verify(embed_spec(embedder), embedder).context_window == 48
    with pytest.raises(ModelUnsupported, match="cannot embed"):
        verify(embed_spec(chat), chat)
    spec = ModelSpec(name="mine", kind="folder", location=str(embedder))
    with pytest.raises(ModelUnsupported, match="cannot generate"):
        verify(spec, embedder)


@pytest.fixture
def without_mlx_embeddings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    encoders._folder.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    yield
    encoders._folder.cache_clear()


@pytest.mark.usefixtures("without_mlx_embeddings")
def test_without_the_extra_the_error_has_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match="mlx-embeddings") as caught:
        check_encoder(BERT, tmp_path)
    assert "pip install 'mlx-guarded-llm[embeddings]'" in caught.value.hint
